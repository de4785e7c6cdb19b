"""How fast is it, and against what a user would pick instead? One command, on whatever device there is.

    python benchmarks/speed.py [--only step stream job] [--side 128 256] [--batch 10 2] [--quick]

Prints Markdown tables and writes speed.csv: medians and ranges of this project and of its peers in the same run on the
same machine, each engine alone and in a process of its own. PyTorch, MONAI and TorchIO are timed where they are
installed; this project does not need them. mgkeras itself need not be installed, only what it needs.

The files: speed_measure.py clocks, speed_mgkeras.py this project, speed_torch.py PyTorch and MONAI, speed_loaders.py
their streams, speed_job.py the rest of a run and the paper's protocol in hours.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from speed_measure import Row, Task, work_of_others, write_synthetic

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {True: ((128, 10), (256, 2)), False: ((64, 4),)}  # (side, batch) to time, on a GPU and on a CPU
STEPS = {True: 20, False: 7}  # samples
SAME = 1e-4  # the twin computes the same loss if it differs by less,
SAME_GRADIENT = 1e-2  # and a weight's gradient by less of its norm: rounding decides which of two near voxels is pooled
BUSY = 0.1  # of the cores: more work than this beside an engine is noted in its rows
TIMEOUT = 1800  # seconds of an engine
COLUMNS = ("date", "device", "versions", *Row.__dataclass_fields__)
PEERS = ("torch", "monai", "torchio")
PACKAGES = ("mgkeras", "tensorflow", "keras", *PEERS, "numpy")  # whose versions are noted


@dataclass(frozen=True)
class Engine:
    """``function`` of ``module`` gets the key and a Task and returns rows; ``gpu`` engines run on a GPU alone."""

    section: str
    key: str
    module: str
    function: str
    needs: tuple[str, ...]
    gpu: bool = False


KERAS, TORCH, MONAI = ("tensorflow",), ("torch",), ("torch", "monai")
ENGINES = (
    Engine("step", "mgkeras", "speed_mgkeras", "step", KERAS),
    Engine("step", "mgkeras-plain", "speed_mgkeras", "step", KERAS, gpu=True),
    Engine("step", "mgkeras-float32", "speed_mgkeras", "step", KERAS, gpu=True),
    Engine("step", "mgkeras-bfloat16", "speed_mgkeras", "step", KERAS),
    *(
        Engine("step", f"torch-{form}", "speed_torch", "step", TORCH, gpu="float16" in form.split("-"))
        for form in (
            "float32",
            "float32-cl",
            "float32-cl-compiled",
            "bfloat16-cl",
            "bfloat16-cl-compiled",
            "float16-cl",
            "float16-cl-compiled",
        )
    ),
    *(
        Engine("step", f"monai-{form}", "speed_torch", "step", MONAI, gpu="float16" in form.split("-"))
        for form in ("float32-cl", "bfloat16-cl", "float16-cl")
    ),
    Engine("stream", "stream-mgkeras", "speed_mgkeras", "stream", (*KERAS, "nibabel", "skfuzzy")),
    Engine("stream", "stream-torch-own", "speed_loaders", "stream", TORCH),
    Engine("stream", "stream-torchio-memory", "speed_loaders", "stream", (*TORCH, "torchio", "nibabel")),
    Engine("stream", "stream-torchio-nifti", "speed_loaders", "stream", (*TORCH, "torchio", "nibabel")),
    Engine("job", "job-files", "speed_job", "files", (*KERAS, "nibabel", "skfuzzy")),
    Engine("job", "job-scores", "speed_job", "scores", (*KERAS, "nibabel", "skfuzzy")),
    Engine("job", "job-exams", "speed_job", "exams", (*KERAS, "nibabel", "skfuzzy")),
)


def main() -> None:
    arguments = parse()
    out = arguments.out or Path(__file__).with_name("speed.csv")
    if arguments.show:
        print(tables(read_csv(out)))
        return
    gpu = has_gpu()
    about = {"date": datetime.date.today().isoformat(), "device": device_name(gpu)}
    settings = list(zip(arguments.side, arguments.batch, strict=True)) if arguments.side else SETTINGS[gpu]
    rows: list[dict] = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        for number, (side, batch) in enumerate(settings):
            steps = arguments.steps or (5 if arguments.quick else STEPS[gpu])
            task = Task(side, batch, steps, arguments.quick, gpu, Path(folder))
            # steps are timed at every setting; what goes with them, at the first
            sections = [name for name in arguments.only if name == "step" or number == 0]
            for row, versions in measured(task, sections, arguments.engines):
                seen = ", ".join(f"{name} {version}" for name, version in versions.items())
                rows.append({**about, "versions": seen, **asdict(row)})
                if arguments.out or not arguments.quick:
                    write_csv(out, rows)  # after each engine, so that a run that is cut off keeps what it has
    print(tables(rows), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("step", "stream", "job"), default=["step", "stream", "job"])
    parser.add_argument("--engines", nargs="+", metavar="TEXT", help="only engines whose key holds one of these texts")
    parser.add_argument("--side", type=int, nargs="+", default=[], help="128 and 256; on a CPU 64")
    parser.add_argument("--batch", type=int, nargs="+", default=[], help="one a side: 10 and 2; on a CPU 4")
    parser.add_argument("--steps", type=int, help=f"samples a step is timed by: {STEPS[True]}; on a CPU {STEPS[False]}")
    parser.add_argument("--quick", action="store_true", help="few and short samples, to see that it runs")
    parser.add_argument(
        "--out",
        type=Path,
        help="default: speed.csv beside this file, but nothing with --quick; rows "
        "of the same device, engine and setting are replaced, others kept",
    )
    parser.add_argument("--show", action="store_true", help="print the tables of --out again and time nothing")
    parser.add_argument("--work", type=Path, help="where the temporary folder is made (some GB at 256^3)")
    for name in ("--engine", "--task"):  # of the processes that this one starts
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        child(arguments.engine, arguments.task)
        sys.exit()
    if len(arguments.side) != len(arguments.batch):
        parser.error(f"expected one --batch for each --side. Received: {arguments.side} and {arguments.batch}")
    return arguments


def measured(task: Task, sections: Sequence[str], wanted: Sequence[str] | None) -> Iterator[tuple[Row, dict]]:
    """Runs the sections' engines one after the other; rows, and the versions that each engine saw."""
    write_synthetic(task.folder, task.side)
    chosen = [
        engine
        for engine in ENGINES
        if engine.section in sections
        and (task.gpu or not engine.gpu)
        and (not wanted or any(text in engine.key for text in wanted))
    ]
    if any(engine.module == "speed_torch" and "torch-" in engine.key for engine in chosen):
        yield check(task), {}
    for engine in chosen:
        print(f"{task.side}^3, {task.batch}: {engine.key} ...", end=" ", file=sys.stderr, flush=True)
        result, others = work_of_others(partial(run, engine, task))
        for row in result["rows"]:
            if others > BUSY and row["median"] is not None:
                row["note"] += f"{'; ' * bool(row['note'])}other work took {others:.0%} of the cores meanwhile"
            yield Row(**row), result["versions"]
        print(result["rows"][0]["median"] or result["rows"][0]["note"], file=sys.stderr, flush=True)


def run(engine: Engine, task: Task) -> dict:
    """The rows and versions of an engine's process; a row with a note where it cannot run."""
    missing = [name for name in engine.needs if importlib.util.find_spec(name) is None]
    names = "torch monai torchio" if set(missing) & set(PEERS) else " ".join(missing).replace("skfuzzy", "scikit-fuzzy")
    note, text = f"not installed: pip install {names}", None
    if not missing:
        text, note = start(engine.key, json.dumps(asdict(task), default=str))
    if text is None:
        unit = {"step": "ms a step", "stream": "volumes/s", "job": "s"}[engine.section]
        row = Row(engine.section, engine.key, engine.key, task.side, task.batch, unit, note=note)
        return {"rows": [asdict(row)], "versions": {}}
    return json.loads(text)


def start(key: str, task: str, **environment: str) -> tuple[str | None, str]:
    """What ``speed.py --engine KEY`` has to say, or None and why it failed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    command = [sys.executable, str(Path(__file__).resolve()), "--engine", key, "--task", task]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return None, f"took more than {TIMEOUT} s"
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not found:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        failed = next((line for line in reversed(said) if "Error" in line), said[-1])
        print(done.stderr[-3000:], file=sys.stderr)
        return None, f"failed: {failed[:160].replace('|', '/')}"
    return found[-1].removeprefix("RESULT "), ""


def child(key: str, task: str) -> None:
    """The process of one engine: prints its rows and versions as JSON."""
    values = json.loads(task)
    task = Task(**{**values, "folder": Path(values["folder"])})
    result: dict = {}
    if key == "reference":
        importlib.import_module("speed_mgkeras").reference(task.folder / "reference.npz")
    elif key == "check":
        result["apart"] = importlib.import_module("speed_torch").check(task.folder / "reference.npz")
    else:
        engine = next(engine for engine in ENGINES if engine.key == key)
        rows = getattr(importlib.import_module(engine.module), engine.function)(key, task)
        result["rows"] = [asdict(row) for row in rows]
    loaded = {name: sys.modules[name].__version__ for name in PACKAGES if name in sys.modules}
    print("RESULT " + json.dumps({**result, "versions": loaded}), flush=True)


def check(task: Task) -> Row:
    """Whether PyTorch's twin is one: the same loss and gradients for the same weights and batch, both on the CPU."""
    blank = Row("check", "twin", "PyTorch's twin against mgkeras", 0, 0, "difference of the loss")
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("tensorflow") is None:
        return Row(**{**asdict(blank), "note": "not checked: PyTorch or TensorFlow is not installed"})
    for key in ("reference", "check"):
        text, note = start(key, json.dumps(asdict(task), default=str), CUDA_VISIBLE_DEVICES="-1")
        if text is None:
            return Row(**{**asdict(blank), "note": f"not checked: {note}"})
    apart = json.loads(text)["apart"]
    same = max(apart["ce"], apart["dice"], apart["loss"]) < SAME and apart["gradient"] < SAME_GRADIENT
    note = (
        f"{'same function' if same else 'VOID: not the same function'}; CE {apart['ce']:.1e}, Dice "
        f"{apart['dice']:.1e}, gradients {apart['gradient']:.1e} of their norm, at most"
    )
    number = float(f"{apart['loss']:.2g}")
    return Row(**{**asdict(blank), "median": number, "low": number, "high": number, "samples": 1, "note": note})


def has_gpu() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or shutil.which("nvidia-smi") is None:
        return False
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return found.returncode == 0 and "GPU 0" in found.stdout


def device_name(gpu: bool) -> str:
    """'NVIDIA H100 80GB HBM3, 16 cores', or the processor's name and its cores."""
    cores = f"{len(os.sched_getaffinity(0))} cores"
    if gpu:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
        return f"{asked.stdout.splitlines()[0]}, {cores}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {cores}"


def write_csv(path: Path, rows: list[dict]) -> None:
    """Writes the rows after those of other devices, engines and settings that the file holds."""

    def same(row: dict) -> tuple:
        return tuple(str(row[name]) for name in ("device", "section", "key", "side", "batch"))

    fresh = {same(row) for row in rows}
    kept = [row for row in (read_csv(path) if path.exists() else []) if same(row) not in fresh]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


def read_csv(path: Path) -> list[dict]:
    numbers = {
        "side": int,
        "batch": int,
        "samples": int,
        "median": float,
        "low": float,
        "high": float,
        "memory_gb": float,
    }
    with open(path, newline="") as file:
        return [
            {name: (numbers[name](text) if text else None) if name in numbers else text for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def tables(rows: list[dict]) -> str:
    from speed_tables import markdown

    return markdown(rows)


if __name__ == "__main__":
    main()
