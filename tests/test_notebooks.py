"""The notebooks run from top to bottom, write nowhere but into a temporary folder, and are stored as they ran.

`python tests/test_notebooks.py [NAME ...]` runs them and stores what they show; `--links` only writes into them
where the repository is, which is `url` under [metadata] in setup.cfg.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = ("cam-by-hand",)  # the others take 15 s and more
COMPUTES = ("cam-by-hand",)  # every number by NumPy and by TensorFlow
SECONDS_A_CELL = 300  # on a busy machine; far more than any takes
COLAB = "https://colab.research.google.com"
INSTALL = """import sys

REPOSITORY = "{url}"  # the address of mgkeras, https://..., or the folder of an uploaded clone, /content/...
if "google.colab" in sys.modules:  # elsewhere mgkeras is installed already
    assert REPOSITORY, "write the address of mgkeras, or the folder of an uploaded clone, into REPOSITORY"
    source = REPOSITORY if REPOSITORY.startswith("/") else f"git+{{REPOSITORY}}"
    %pip install --quiet "$source"
"""


def repository() -> str:
    """The repository's address, or '' where none is configured."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", "utf-8")
    return config.get("metadata", "url", fallback="").rstrip("/")


def linked(book: nbformat.NotebookNode, name: str, url: str) -> nbformat.NotebookNode:
    """The notebook with its install cell, and with a badge that opens it in Colab where its address is known."""
    title = re.sub(r"\n\n\[!\[Open in Colab.*", "", book.cells[0].source)
    if url.startswith("https://github.com/"):
        place = url.removeprefix("https://github.com/").removesuffix(".git")
        title += f"\n\n[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
        title += f"({COLAB}/github/{place}/blob/main/notebooks/{name}.ipynb)"
    book.cells[0].source, book.cells[1].source = title, INSTALL.format(url=url).rstrip()
    return book


def code_of(book: nbformat.NotebookNode) -> list[str]:
    """The code cells without lines of IPython's own."""
    cells = [cell.source for cell in book.cells if cell.cell_type == "code"]
    return [re.sub(r"^( *)%.*$", r"\1pass", source, flags=re.M) for source in cells]


def executed(path: Path, here: Path) -> nbformat.NotebookNode:
    """The notebook as it runs from top to bottom in a folder; raises where a cell does."""
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(here)}}
    return NotebookClient(book, timeout=SECONDS_A_CELL, kernel_name="python3", resources=resources).execute()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.slow] * (path.stem not in QUICK) + [pytest.mark.computes] * (path.stem in COMPUTES),
        )
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_from_top_to_bottom_and_leaves_nothing_behind(path, tmp_path, monkeypatch):
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    for folder, names in (
        (here, ()),
        (temporary, ("TMPDIR",)),
        (tmp_path / "jupyter", ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")),
    ):  # the user's own settings must not matter
        folder.mkdir()
        for name in names:
            monkeypatch.setenv(name, str(folder))
    book = executed(path, here)
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert list(here.iterdir()) == [] and list(temporary.glob("mgkeras-*")) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_of_mgkeras_exists(path):
    """The quick twin of running it: a name that moved is found at once."""
    book = nbformat.read(path, as_version=4)
    for node in (node for source in code_of(book) for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("mgkeras"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {
        *("exam-to-map", "cam-by-hand", "guide-your-own", "run-to-dataframes", "reading-a-report")
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_has_a_title_its_pictures_and_nothing_that_changes_with_every_save(path):
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    assert set(book.metadata) == {"kernelspec", "language_info"} and set(book.metadata.language_info) == {"name"}
    assert book.cells[0].cell_type == "markdown" and re.match(r"# \S.*\n\n\S", book.cells[0].source)
    for cell in book.cells:
        assert cell.metadata == {} and re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id), cell.id
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # from top to bottom, once
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert "/tmp/" not in str(outputs) and path.stat().st_size < 1e6
    assert code[0].id == "install" and len(code) <= 13


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_a_badge_and_an_address_only_where_one_is_configured(path):
    book = nbformat.read(path, as_version=4)
    assert linked(nbformat.read(path, as_version=4), path.stem, repository()) == book
    there = linked(nbformat.read(path, as_version=4), path.stem, "https://github.com/someone/mgkeras")
    assert there.cells[0].source.endswith(f"/someone/mgkeras/blob/main/notebooks/{path.stem}.ipynb)")
    assert 'REPOSITORY = "https://github.com/someone/mgkeras"' in there.cells[1].source
    assert linked(there, path.stem, repository()) == book


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_public_names_and_names_notebooks_that_exist(path):
    book = nbformat.read(path, as_version=4)
    for source in code_of(book):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mgkeras"):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")]
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_"), node.attr
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    assert all((ROOT / "notebooks" / name).exists() for name in re.findall(r"`([\w-]+\.ipynb)`", text))


def test_the_sections_of_the_docs_that_the_notebooks_cite_exist():
    text = " ".join(cell.source for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells)
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for title in ("Does guidance guide?", "Choices that the paper leaves open"):
        assert f"*{title}*" in " ".join(text.split()) and f"## {title}\n" in page


def store(path: Path, run: bool) -> None:
    """Runs a notebook and stores it with its outputs, without times and widths that change with every run."""
    with tempfile.TemporaryDirectory() as here:
        book = executed(path, Path(here)) if run else nbformat.read(path, as_version=4)
    for cell in book.cells:
        cell.metadata = {}
    book.metadata.language_info = {"name": "python"}
    nbformat.write(linked(book, path.stem, repository()), path)


if __name__ == "__main__":
    links, names = "--links" in sys.argv, [word for word in sys.argv[1:] if word != "--links"]
    for notebook in NOTEBOOKS:
        if notebook.stem in names or not names:
            store(notebook, not links)
