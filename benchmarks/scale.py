"""How do time and memory grow with the cohort? Each step of a run on cohorts of small synthetic exams.

    python benchmarks/scale.py [--sizes 100 1000 10000] [--side 16] [--work DIR] [--steps check cache ...]

BASE phantoms are drawn; the other exams are copies of them in which three voxels in air hold the exam's number, so that
no two files are the same. Each step runs in a process of its own, whose seconds, seconds of its cores and peak memory
are rows of scale.csv; rows that are there are not measured again, and what is finished in DIR is used again. What a
step left that was stopped is removed before it is measured. --show prints the table and measures nothing.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSV = Path(__file__).with_name("scale.csv")
COLUMNS = ("date", "subjects", "side", "step", "seconds", "core_seconds", "peak_mb", "note")
BASE = 50  # phantoms that are drawn
INSIDE = ("cache", "cache again", "one more")  # steps that call cache.cached
STEPS = {  # step: what it does
    "check": "cohort check, one process, with its sheet",
    "cache": "cache.cached, nothing there",
    "cache again": "the same, all there",
    "one more": "the same, one exam more",
    "fit": "fit --model guided, 2 folds of one epoch of one variant, exams cached",
    "fit context": "the same of guided-context",
    "predict": "predict by both folds, with maps",
    "evaluate": "evaluate --no-probe",
    "probe": "evaluate, its probes",
    "report": "report of the probed run",
}


MADE = {  # step: what it makes in DIR/SIDE-SIZE
    "check": ("check.html",),
    "cache": ("cache",),
    "fit": ("run",),
    "fit context": ("context",),
    "predict": ("predicted",),
    "evaluate": ("evaluation",),
    "probe": ("run/probes", "evaluation-probed"),
    "report": ("report.html",),
}
NEEDS = {  # step: the one whose files it reads
    "cache again": "cache",
    "one more": "cache",
    "fit": "cache",
    "fit context": "cache",
    "predict": "fit",
    "evaluate": "fit",
    "probe": "fit",
    "report": "probe",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("scale-work"))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--again", action="store_true", help="measure rows that are there too, and replace them")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--inside", nargs=3, metavar=("TABLE", "CACHE", "SIDE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        return inside(Path(asked.inside[0]), Path(asked.inside[1]), int(asked.inside[2]))
    rows = read()
    if not asked.show:
        write_exams(asked.work, max(asked.sizes) + 1, asked.side)
        for size in asked.sizes:
            for step in asked.steps:
                key = (str(size), str(asked.side), step)
                if key in rows and not asked.again:
                    continue
                prepare(asked.work, size, asked.side, step)
                row = measured(asked.work, size, asked.side, step)
                write(read() | {key: row})  # another process may have measured other rows
                print(*row.values(), flush=True)
    print(table(list(read().values())))


def prepare(work: Path, size: int, side: int, step: str) -> None:
    """Makes what a step reads, where it is not there."""
    need = NEEDS.get(step)
    if need and not finished(work, size, side, need).exists():
        prepare(work, size, side, need)
        measured(work, size, side, need)


def finished(work: Path, size: int, side: int, step: str) -> Path:
    """The file that says that a step's files are whole."""
    return work / f"{side}-{size}" / f"{step}.done"


def measured(work: Path, size: int, side: int, step: str) -> dict:
    """A row: one step in a process of its own."""
    command, log = command_of(work, size, side, step), work / f"{size}-{step}.log"
    done = finished(work, size, side, step)
    for made in (done, *(done.parent / name for name in MADE.get(step, ()))):
        shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
    began = time.monotonic()
    with open(log, "w") as out:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        child = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, env=environment)
        _, status, used = os.wait4(child.pid, 0)  # of its own child processes too
    seconds, code = time.monotonic() - began, os.waitstatus_to_exitcode(status)
    child.returncode = code
    if code == 0:
        done.touch()
    note = "" if code == 0 else f"exit code {code}: {log.read_text()[-120:].strip()}".replace("\n", " ")
    return {
        "date": datetime.date.today().isoformat(),
        "subjects": size,
        "side": side,
        "step": step,
        "seconds": round(seconds, 2),
        "core_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 1024),  # of the largest process; Linux tells KiB
        "note": note,
    }


def command_of(work: Path, size: int, side: int, step: str) -> Sequence[object]:
    """The command of a step; it makes the cohort's table where that is missing."""
    here = work / f"{side}-{size}"
    table, run = write_table(work, here, size), here / "run"
    mgkeras = (sys.executable, "-m", "mgkeras")
    if step in INSIDE:
        if step == "one more":
            table = write_table(work, here, size + 1)
        return (sys.executable, __file__, "--inside", table, here / "cache", side)
    short = ("--preset", "demo", "--folds", 2, "--epochs", 1, "--variants-per-epoch", 1, "--side", side)
    fit = ("fit", "--cohort", table, "--outcome", "recurrence", *short, "--cache", here / "cache", "--model")
    commands = {
        "check": ("cohort", "check", table, "--jobs", 1, "--out", here / "check.html"),
        "fit": (*fit, "guided", "--out", run),
        "fit context": (*fit, "guided-context", "--out", here / "context"),
        "predict": ("predict", run, "--cohort", table, "--out", here / "predicted"),
        "evaluate": ("evaluate", run, "--no-probe", "--out", here / "evaluation"),
        "probe": ("evaluate", run, "--cache", here / "cache", "--out", here / "evaluation-probed"),
        "report": ("report", run, "--cache", here / "cache", "--out", here / "report.html"),
    }
    return (*mgkeras, *commands[step])


def inside(table: Path, cache: Path, side: int) -> None:
    """The steps of the cache, in their process."""
    from mgkeras.data.cache import cached
    from mgkeras.data.cohort import read_cohort
    from mgkeras.settings import preset, with_values

    made: list[int] = []
    settings = with_values(preset("demo"), {"volume.side": side})
    cached(read_cohort(table, "recurrence").subjects, settings, cache, lambda done, of: made.append(done))
    print(f"{len(made)} exams made")


def write_exams(work: Path, count: int, side: int) -> None:
    """WORK/images/SIDE-NUMBER_{pre,early}.nii.gz, as many as are asked for."""
    import nibabel as nib
    import numpy as np

    from mgkeras.phantom.cohort import make_phantom

    base = work / f"base-{side}"
    if not (base / "cohort.csv").exists():
        make_phantom(base, BASE, side)
    (work / "images").mkdir(exist_ok=True)
    names = [row["subject"] for row in rows_of(base / "cohort.csv")]
    drawn = {(name, phase): nib.load(base / f"images/{name}_{phase}.nii.gz") for name in names for phase in PHASES}
    for number in range(count):
        for phase in PHASES:
            path = exam_file(work, side, number, phase)
            if not path.exists():
                image = drawn[names[number % BASE], phase]
                voxels = np.asarray(image.dataobj).copy()
                voxels[0, 0, :3] = np.array([number // 10000, number // 100, number]) % 100
                nib.save(nib.Nifti1Image(voxels, image.affine, image.header), path)


PHASES = ("pre", "early")


def exam_file(work: Path, side: int, number: int, phase: str) -> Path:
    return work / "images" / f"{side}-{number:05d}_{phase}.nii.gz"


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_table(work: Path, here: Path, count: int) -> Path:
    """HERE/cohort-COUNT.csv, of the first exams."""
    here.mkdir(parents=True, exist_ok=True)
    path, side = here / f"cohort-{count}.csv", int(here.name.split("-")[0])
    base = rows_of(work / f"base-{side}" / "cohort.csv")
    with open(path, "w", newline="") as file:
        columns = ("subject", *PHASES, "site", "age", "recurrence")
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for number in range(count):
            files = {phase: exam_file(work, side, number, phase).resolve() for phase in PHASES}
            writer.writerow({**base[number % BASE], "subject": f"S{number:05d}", **files})
    return path


def read() -> dict[tuple[str, str, str], dict]:
    rows = rows_of(CSV) if CSV.exists() else []
    return {(row["subjects"], row["side"], row["step"]): row for row in rows}


def write(rows: dict) -> None:
    with open(CSV, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def table(rows: Sequence[dict]) -> str:
    """Markdown: a row a step; of each size seconds of the cores (a ms an exam) and peak memory."""
    sizes = sorted({int(row["subjects"]) for row in rows})
    lines = [["step", *(f"{size} exams" for size in sizes)], ["---"] * (len(sizes) + 1)]
    for step, what in STEPS.items():
        cells = []
        for size in sizes:
            row = next((row for row in rows if (int(row["subjects"]), row["step"]) == (size, step)), None)
            if row is None or row["note"]:
                cells.append(row["note"] if row else "-")
                continue
            core = float(row["core_seconds"])
            cells.append(f"{core:.1f} s ({1000 * core / size:.1f} ms), {row['peak_mb']} MB")
        lines.append([what, *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
