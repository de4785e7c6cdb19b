"""The wheel, installed and run away from the checkout."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mgkeras

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_installed_wheel_runs_from_another_folder(tmp_path):
    """Catches a module that setup.cfg does not list: an editable install would hide it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True)
    wheel = next(tmp_path.glob("mgkeras-*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = "import sys, mgkeras; print(mgkeras.__file__); from mgkeras.cli.main import cli; cli(['phantom', 'out', "
    code += "'--subjects', '1', '--side', '16'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
    )
    assert str(tmp_path / "site") in done.stdout and (tmp_path / "out" / "cohort.csv").exists()
    modules = {
        path.relative_to(tmp_path / "site" / "mgkeras").as_posix()
        for path in (tmp_path / "site" / "mgkeras").rglob("*.py")
    }
    ours = {path.relative_to(ROOT / "mgkeras").as_posix() for path in (ROOT / "mgkeras").rglob("*.py")}
    ours |= {f"cli/{path.name}" for path in (ROOT / "cli").glob("*.py")}
    assert modules == ours
    assert (tmp_path / "site" / "mgkeras" / "py.typed").exists()
    for room, known in (("report", "niivue.umd.js"), ("serving", "model-card.md")):
        assets = {path.name for path in (ROOT / "mgkeras" / room / "assets").iterdir()}
        assert {path.name for path in (tmp_path / "site" / "mgkeras" / room / "assets").iterdir()} == assets
        assert known in assets
    assert not (tmp_path / "site" / "cli").exists()
    assert next((tmp_path / "site").glob("mgkeras-*.dist-info/**/niivue-LICENSE.txt"))


def test_versions_licences_and_templates_agree():
    """CITATION.cff and CHANGELOG.md are of this version; what is vendored has its licence in the wheel's metadata."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mgkeras.__version__ and citation["preferred-citation"]["doi"]
    newest = re.search(r"^## \[(.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest.groups() == (citation["version"], str(citation["date-released"]))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    licences = [line for line in setup["metadata"]["license_files"].split() if "/" in line]
    assert licences and all((ROOT / line).is_file() for line in licences)
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert path.name == "config.yml" or all(part["attributes"] for part in form["body"])
