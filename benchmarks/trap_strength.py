"""How strong is a trap? Trains the no-mask model on it and scores it on new patients: how phantom/traps.py was chosen.

    python benchmarks/trap_strength.py --traps noise bias [--set NOISE_FACTOR=2.5] [--seeds 10] [--out runs/traps]

For each trap alone (none, too: a phantom without one) and each seed s, 100 patients of phantom 1000 + s are trained on
whole, without folds; in them the trap agrees with recurrence in 95 %. Scored on 100 patients of 2000 + s, where it
agrees as often (LEAK), and of 3000 + s, where it agrees in 50 % (FAIR). A trap is strong enough where LEAK is 0.95 or
more and FAIR below 0.75. Seeds 0 to 9 are for reporting: no strength is chosen on them. --set changes a constant of
phantom/traps.py for this run. Every run is a row of trap_strength.csv beside this file; one that is there is not
repeated.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from mgkeras.data.cache import Cache, cached
from mgkeras.data.cohort import read_cohort
from mgkeras.inference.forward import score_rows
from mgkeras.phantom import traps
from mgkeras.phantom.cohort import make_phantom
from mgkeras.scores.metrics import auc_score
from mgkeras.settings import TRAPS, Settings, for_model, preset, with_values
from mgkeras.training.devices import choose_device
from mgkeras.training.fit import fold_seed, train_fold

TABLE = Path(__file__).with_suffix(".csv")
SETS = {"train": (1000, 0.95), "leak": (2000, 0.95), "fair": (3000, 0.5)}
STRENGTHS = {  # the constants of phantom/traps.py that a trap's strength is made of
    "none": (),
    "spot": ("BALL",),
    "marker": ("MARKER", "MARKER_MM"),
    "near": ("BALL", "NEAR_RADII_MM", "NEAR_GAPS_MM"),
    "bias": ("BIAS",),
    "noise": ("NOISE_FACTOR",),
    "enhancement": ("ENHANCEMENT_FACTOR",),
    "site": ("SOUTH_SLICES", "SOUTH_FALLOFF"),
}
SCANNERS = ("SOUTH_SLICES", "SOUTH_FALLOFF")  # every phantom has both sites


def settings_of(trap: str, texture: float) -> str:
    """What a phantom with the trap is made of, for the table: 'BIAS=0.8 SOUTH_SLICES=1.8 ...'."""
    names = dict.fromkeys((*STRENGTHS[trap], *SCANNERS))
    return " ".join([f"texture={texture}", *(f"{name}={getattr(traps, name)}".replace(" ", "") for name in names)])


def cohort(
    folder: Path, trap: str, made_of: str, which: str, arguments: argparse.Namespace, seed: int, settings: Settings
) -> tuple[Cache, np.ndarray]:
    """The cube and the label of each patient of a phantom, which is made where it is not there."""
    first, agreement = SETS[which]
    home = folder / f"{trap}-{made_of.replace(' ', '-')}-{arguments.subjects}-{settings.volume.side}-{first + seed}"
    if not (home / "cohort.csv").exists():
        make_phantom(
            home,
            arguments.subjects,
            settings.volume.side,
            first + seed,
            agreement=agreement,
            traps=() if trap == "none" else (trap,),
            texture=arguments.texture,
        )
        with_masks(home / "cohort.csv")
    subjects = read_cohort(home / "cohort.csv", "recurrence").subjects
    return cached(subjects, settings, folder / "cache"), np.array([subject.label for subject in subjects])


def with_masks(table: Path) -> None:
    """Names the true masks: what the no-mask model does not look at need not be computed."""
    with table.open(newline="") as file:
        rows = [row | {"mask": f"truth/{row['subject']}.nii.gz"} for row in csv.DictReader(file)]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def measured(folder: Path, trap: str, made_of: str, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """A row of the table."""
    settings = replace(with_values(preset("demo"), {"training.epochs": arguments.epochs}), seed=seed)
    settings = for_model(settings, "no-mask")
    sets = {which: cohort(folder, trap, made_of, which, arguments, seed, settings) for which in SETS}
    began = time.monotonic()
    cache, labels = sets["train"]
    model, history = train_fold(
        cache, labels, range(len(labels)), settings, choose_device(), seed=fold_seed(settings, 0)
    )
    seconds = time.monotonic() - began
    found = {
        which: auc_score(labels, score_rows(model, cache, range(len(labels)), causal=False).probability)
        for which, (cache, labels) in sets.items()
    }
    return {
        "ce": f"{history[-1]['ce']:.3f}",
        **{f"auc_{which}": f"{auc:.3f}" for which, auc in found.items()},
        "seconds": f"{seconds:.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traps", nargs="+", choices=("none", *TRAPS), default=list(TRAPS))
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="a constant of phantom/traps.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--texture", type=float, default=0.6)
    parser.add_argument("--out", type=Path, default=Path("runs/traps"), help="where phantoms and caches are kept")
    arguments = parser.parse_args()
    for name, _, value in (one.partition("=") for one in arguments.set):
        parts = tuple(map(float, value.split(",")))
        setattr(traps, name, parts if isinstance(getattr(traps, name), tuple) else parts[0])
    for seed in arguments.seeds:
        for trap in arguments.traps:
            about = {
                "trap": trap,
                "made_of": settings_of(trap, arguments.texture),
                "seed": str(seed),
                "epochs": str(arguments.epochs),
                "subjects": str(arguments.subjects),
            }
            rows = list(csv.DictReader(TABLE.open(newline=""))) if TABLE.exists() else []
            if any(about.items() <= row.items() for row in rows):
                continue
            row = about | measured(arguments.out, trap, about["made_of"], seed, arguments)
            row["date"] = f"{datetime.date.today()}"
            with TABLE.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if not rows:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
