"""README and docs are true: help texts are those of the commands, commands and names exist, files are there."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from mgkeras.cli.main import COMMANDS, cli

import mgkeras

ROOT = Path(__file__).parent.parent
HELP = ROOT / "docs" / "command-line.md"  # written by this file
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}


def help_text(*command: str) -> str:
    """`mgkeras COMMAND --help` at a width of 80, which the site shows whole."""
    return CliRunner().invoke(cli, [*command, "--help"], prog_name="mgkeras", terminal_width=80).output.rstrip()


def every_command() -> list[tuple[str, ...]]:
    """The words of each command, those of groups in their place."""
    found = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.list_commands(click.Context(command))]
    return found


def help_section() -> str:
    """docs/command-line.md as it must be; `python tests/test_docs.py` writes it."""
    head = "# Command line\nThe help of every command, written by `python tests/test_docs.py`."
    parts = [f"## mgkeras {' '.join(words)}\n```\n{help_text(*words)}\n```" for words in every_command()]
    return "\n\n".join([head, f"```\n{help_text()}\n```", *parts]) + "\n"


def command_of(words: tuple[str, ...]) -> click.Command:
    command = cli
    for word in words:
        command = command.get_command(click.Context(command), word)
    return command


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_help_and_every_option_says_what_it_does(words):
    command = command_of(words)
    assert command.help and command.name == words[-1]
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


def test_the_help_in_the_docs_is_the_commands_help():
    assert TEXTS[HELP] == help_section(), "run `python tests/test_docs.py` to write the help texts"


def test_the_readme_is_short():
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 160


def test_mgkeras_alone_tells_what_to_do_next():
    alone = CliRunner().invoke(cli, [], prog_name="mgkeras")
    assert alone.exit_code == 0 and "See it work" in alone.output and "cohort.csv" in alone.output


def told_commands() -> list[str]:
    """Every line of README and docs, in a block of its own, that starts with mgkeras; lines that go on are joined."""
    blocks = [
        block
        for path, text in TEXTS.items()
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
        if path != HELP and language in ("", "bash")
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("mgkeras ")))


@pytest.mark.parametrize("line", told_commands())
def test_the_commands_that_are_told_parse(line, tmp_path, monkeypatch):
    """Every command line of README and docs names a command and options that exist (files are made up)."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.replace(" /shared/", " shared/").replace("$SLURM_ARRAY_TASK_ID", "1"))[1:]
    depth = 2 if words[0] in ("import", "cohort") else 1
    command, words = command_of(tuple(words[:depth])), words[depth - 1 :]
    for word in words[1:]:
        if word.endswith((".csv", ".json", ".toml")):
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            Path(word).touch()
        elif word.startswith("runs/") or (line.startswith("mgkeras import") and word == words[1]):
            Path(word).mkdir(parents=True, exist_ok=True)
    command.make_context(words[0], words[1:])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_files_that_a_page_links_to_or_names_exist(path):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXTS[path]):
        assert (path.parent / target).exists(), target
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", TEXTS[path]):
        titles = re.findall(r"^#+ (.+)$", (path.parent / target if target else path).read_text("utf-8"), re.M)
        assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], anchor
    assert not re.findall(r"@[A-Z]+@", TEXTS[path])
    if path.name == "CONTRIBUTING.md":
        for name in re.findall(r"`((?:mgkeras|cli|tests|notebooks)/[\w./-]+)`", TEXTS[path]):
            assert (ROOT / name).exists(), name


def test_the_python_that_is_told_names_what_exists():
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```python\n(.*?)```", text, re.S)]
    assert len(blocks) >= 4
    for block in blocks:
        ast.parse(block)
        for name in re.findall(r"\bmgkeras\.(\w+)", block):
            assert name in mgkeras.__all__, name


def test_what_is_told_of_guidance_is_what_was_measured():
    """docs/models.md has the whole tables of benchmarks/guidance.jsonl, README.md some rows of the short table."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from guidance_tables import EVIDENCE, SCORES, SHORT, TRAPS, table

    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "guidance.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["epochs"] == 100 and row["side"] == 48]
    assert all(table(rows, columns) in TEXTS[ROOT / "docs" / "models.md"] for columns in (SCORES, EVIDENCE))
    short = table([row for row in rows if row["masks"] == "true"], SHORT).splitlines()
    told = [line for line in TEXTS[ROOT / "README.md"].splitlines() if re.match(rf"\| ({'|'.join(TRAPS)}) \|", line)]
    assert len(told) >= len(TRAPS) and set(told) <= set(short)


def test_help_imports_nothing_heavy():
    heavy = "tensorflow keras matplotlib scipy sklearn nibabel h5py skfuzzy numpy"
    code = (
        "import sys\nfrom mgkeras.cli.main import cli\ncli.main(['--help'], standalone_mode=False)\n"
        f"print('HEAVY', [name for name in '{heavy}'.split() if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.rstrip().endswith("HEAVY []")


if __name__ == "__main__":
    HELP.write_text(help_section(), encoding="utf-8")
