"""Which package may import which, and how many statements a file may have."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "mgkeras").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
TENSORFLOW = ("tensorflow", "keras")
ORDER = (  # a package imports those before it, and itself
    "errors",
    "settings",
    "data",
    "phantom",
    "importers",
    "models",
    "runs",
    "scores",
    "inference",
    "figures",
    "training",
    "probes",
    "tuning",
    "evaluation",
    "report",
    "check",
    "serving",
)
NOT = dict.fromkeys(ORDER[ORDER.index("models") :], ("importers",))  # only the command line knows sources of cohorts
WITHOUT_TENSORFLOW = ("settings", "errors", "data", "phantom", "importers", "runs", "scores", "figures", "evaluation")
OUTSIDE = {  # files that stand in no package
    "__init__.py": ("mgkeras.models", "mgkeras.training.api"),  # when a name is first used
    "__main__.py": ("mgkeras.cli",),
    "cli": ("mgkeras",),
}
HEAVY = (
    *TENSORFLOW,
    *("matplotlib", "nibabel", "scipy", "sklearn", "skfuzzy", "h5py", "numpy"),
    *(f"mgkeras.{room}" for room in ORDER if room not in ("errors", "settings")),
)


def may_import(room):
    """The packages that a file of a package may import."""
    if room in OUTSIDE:
        return OUTSIDE[room]
    room = room.removesuffix(".py")
    before = [name for name in ORDER[: ORDER.index(room) + 1] if name not in NOT.get(room, ())]
    return ("mgkeras.__version__", *(f"mgkeras.{name}" for name in before))


def imports(node, inside=False):
    """(full dotted name, whether it is imported only when a function runs or types are checked) of a file's imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"line {child.lineno}: imports are absolute here"
            yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from ((name, True) for name, _ in imports(child))
        else:
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(child, inside or lazy)


def of(name, modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_only_what_its_layer_may(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    where = path.relative_to(ROOT).as_posix()
    room = where.removeprefix("mgkeras/").split("/")[0]
    found = list(imports(tree))
    assert [name for name, _ in found if of(name, ["mgkeras"]) and not of(name, may_import(room))] == []
    if room.removesuffix(".py") in WITHOUT_TENSORFLOW and where != "mgkeras/data/stream.py":
        assert [name for name, _ in found if of(name, TENSORFLOW)] == []
    if room == "cli":
        assert [name for name, inside in found if not inside and of(name, HEAVY)] == []
    # statements, since lines depend on the formatter; about 300 lines of code with few tables in it
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) <= 200
