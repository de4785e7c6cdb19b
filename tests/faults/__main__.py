"""python -m faults: tries faults at random, adds to the log of what came of them, prints the counts."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

from faults import bits, disk, edits, kills, lies
from faults.counts import Trial, append, read, table
from faults.processes import import_all
from faults.world import make_world

KINDS = {"kill": kills.trial, "bit": bits.trial, "edit": edits.trial, "disk": disk.trial, "lie": lies.trial}


def main() -> int:
    """0 where nothing wrong was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="of each kind, those in the log among them")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}; KIND:COUNT too")
    parser.add_argument("--light", action="store_true", help="only what needs no TensorFlow, which is imported slowly")
    parser.add_argument("--log", type=Path, help="a folder of logs, to go on with")
    parser.add_argument("--work", type=Path, help="a folder for exams and trials, a fast one; 100 MB")
    parser.add_argument("--part", default="0/1", help="K/OF: every OF-th trial from K on, to try several at a time")
    asked = parser.parse_args()
    part, of = map(int, asked.part.split("/"))
    with tempfile.TemporaryDirectory() as temporary:
        work, log = asked.work or Path(temporary), asked.log or Path(temporary) / "log"
        log.mkdir(parents=True, exist_ok=True)
        import_all(not asked.light)
        world = make_world(work / "world", not asked.light)
        for kind, _, own in (word.partition(":") for word in asked.kinds.split(",")):
            count = int(own or asked.count)
            known = {trial.seed: trial for trial in read(log) if trial.kind == kind and trial.seed % of == part}
            tried, seed = sum(trial.tried for trial in known.values()), part
            while tried * of < count:
                if seed not in known:
                    found = _tried(kind, seed, world, work / f"trial-{part}", not asked.light)
                    append(log / f"{part}.jsonl", found)
                    tried += found.tried
                    if found.wrong:
                        print(found, file=sys.stderr, flush=True)
                seed += of
        trials = read(log)
    print(table(trials))
    return int(any(trial.wrong for trial in trials))


def _tried(kind: str, seed: int, world: Path, folder: Path, heavy: bool) -> Trial:
    try:
        return KINDS[kind](seed, world, folder, heavy)
    except Exception:  # the harness's own: it is counted, so that the others go on
        return Trial(kind, "the harness itself", seed, 1, "traceback", {"said": traceback.format_exc()[-3000:]})


if __name__ == "__main__":
    # one thread, as a fork needs it, and no time in pictures
    once = {"OPENBLAS_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if not once.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "faults", *sys.argv[1:]], os.environ | once)
    sys.exit(main())
