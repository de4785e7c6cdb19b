"""A folder with everything that commands are tried on: tiny exams, runs, exports; and the commands themselves."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from faults.processes import Ended, mgkeras
from mgkeras.data import in_use

FIT = (
    "--preset demo --outcome recurrence --side 16 --folds 2 --epochs 2 --batch-size 4 --shift-voxels 1 --deterministic"
)
TUNE = "--lambda 0.1:10:log --trials 2 --inner-folds 2"
DICOM = "import dicom sources/archive out --keep-map patients.csv --labels sources/labels.csv"
DRAWS = "--samples 100 --occlusions 1"
TIMES = {"seconds", "finished", "began"}  # of JSON and tables: how long something took, and when it ended
TIMED = ("history.csv", "trials.csv")  # tables that hold them
PART = re.compile(r"\.\d+-.+|\.export-.*\.part|\..*\.part|\.tmp.*")  # names of files that are being written


@dataclass(frozen=True)
class Command:
    """A command: its words, of which those of its time share of all trials; whether it needs TensorFlow."""

    name: str
    line: str
    share: int
    heavy: bool = False

    @property
    def words(self) -> list[str]:
        """As the shell gives them."""
        return self.line.split()

    def run(self, folder: Path, **options) -> Ended:
        """The command in a world; options of processes.forked."""
        return mgkeras(self.words, folder, **options)


# the world has no out, which each of them writes
COMMANDS = (
    Command("phantom", "phantom out --subjects 4 --side 16 --trap spot", 12),
    Command("mask", "mask phantom/cohort.csv --out out --jobs 1", 12),
    Command("mask, 2 jobs", "mask phantom/cohort.csv --out out --jobs 2", 3),
    Command("cohort check", "cohort check masks/cohort.csv --out out/check.html --outcome recurrence --jobs 1", 8),
    Command("import bids", "import bids sources/dataset out", 12),
    Command("import dicom", DICOM, 8, True),
    Command("compare", "compare runs/guided runs/no-mask --out out", 10, True),
    Command("fit", f"fit --model guided --cohort masks/cohort.csv --out out/run --cache out/cache {FIT}", 6, True),
    Command(
        "fit, 2 jobs",
        f"fit --model guided --cohort masks/cohort.csv --out out/run --jobs 2 --cache out/cache {FIT}",
        3,
        True,
    ),
    Command(
        "tune", f"tune --model guided --cohort masks/cohort.csv --out out/run --cache out/cache {TUNE} {FIT}", 4, True
    ),
    Command("evaluate", f"evaluate runs/guided --out out --cache cache {DRAWS}", 5, True),
    Command("report", f"report runs/probed --out out/report.html --cache cache {DRAWS}", 6, True),
    Command("predict", "predict runs/guided --cohort phantom/cohort.csv --out out", 5, True),
    Command("export", "export runs/guided --out out/model", 5, True),
)
BY_NAME = {command.name: command for command in COMMANDS}
LIGHT = (
    "phantom phantom --subjects 8 --side 16 --trap spot",
    "mask phantom/cohort.csv --out masks --jobs 1",
)
HEAVY = (
    f"fit --model guided --cohort masks/cohort.csv --out runs/guided --cache cache {FIT}",
    f"fit --model no-mask --cohort masks/cohort.csv --out runs/no-mask --cache cache {FIT}",
    f"fit --model guided --cohort masks/cohort.csv --out runs/probed --cache cache {FIT}",
    f"report runs/probed --out report.html --cache cache {DRAWS}",
    "evaluate runs/probed --no-probe --out evaluation --samples 100",
    DICOM,  # once, for the pseudonyms
)


def make_world(folder: Path, heavy: bool) -> Path:
    """The world, or what it lacks yet: exams, sources to import and, for ``heavy``, runs, probes, an evaluation."""
    from miniatures.bids import make_bids
    from miniatures.dicom import make_dicom

    made = folder / "made"  # a line for each thing that is finished
    if not made.exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "sources").mkdir(parents=True)
        make_bids(folder / "sources")
        make_dicom(folder / "sources", subjects=2)
        made.touch()
    for line in (*LIGHT, *(HEAVY if heavy else ())):
        if line not in made.read_text().splitlines():
            if (ended := mgkeras(line.split(), folder)).status:
                raise RuntimeError(f"expected `{line}` to succeed. Received: {ended.said[-2000:]}")
            with open(made, "a") as file:
                file.write(line + "\n")
    shutil.rmtree(folder / "out", ignore_errors=True)
    return folder


def copied(world: Path, folder: Path) -> Path:
    """A copy of the world to try something in, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """{name: bytes} of every file, times left out: what two ends of a command have the same. No files being written."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {name: _timeless(path) for path in paths if not left_over(name := str(path.relative_to(folder)))}


def left_over(name: str) -> bool:
    """Whether a file was being written, is a lock, says who uses a cache, or is the number that TensorFlow draws."""
    return any(PART.fullmatch(part) or part == in_use.FOLDER for part in Path(name).parts) or name.endswith(
        (".lock", "fingerprint.pb")
    )


def _timeless(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        if path.suffix == ".json":
            return json.dumps(_without_times(json.loads(content)), sort_keys=True).encode()
        if path.name in TIMED:
            rows = list(csv.DictReader(io.StringIO(content.decode())))
            return repr([{name: cell for name, cell in row.items() if name not in TIMES} for row in rows]).encode()
    except (ValueError, RecursionError, csv.Error):
        pass  # a damaged file is compared as it is
    return content


def _of_times(name: str) -> bool:
    """Whether a name is that of a time, or of the digest of a file that holds times."""
    return name in TIMES or Path(name).name in {*TIMED, "tune.json", "result.json", "done.json"}


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_times(part) for name, part in value.items() if not _of_times(name)}
    return [_without_times(part) for part in value] if isinstance(value, list) else value


def different(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Names of files that one of two contents lacks, or that differ."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
