"""Which settings learn real images? Trains short ones on real lung nodules and on the phantom's traps; resumes.

    python benchmarks/preset.py                          the choice that benchmarks/README.md reports: an hour or two
    python benchmarks/preset.py --quick                  two settings, few epochs: a minute
    python benchmarks/preset.py --configs cosine adamw --seeds 8
    python benchmarks/preset.py --trap spot --side 48 --configs demo cosine

Nodules (LIDC-IDRI, ../shared/data/lidc): half A of the 69 pairs of a malignant and a benign nodule of like volume, in
three folds by patient. Half B, whose patients are others, and seeds 0 to 2 are those that are reported, by `mgkeras
fit` on the tables of --write-halves; nothing is chosen on them. (Nodules of patients without a pair choose nothing, for
volume alone parts them with an AUC of 1.00.) With --trap: trained on 100 phantoms of seed 1000 + seed, where the trap
agrees with recurrence in 95 %, scored on 100 new ones where it agrees in 50 %.

A training that stands in preset.jsonl, beside this file, or in another --log is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from mgkeras.data.cache import cached
from mgkeras.data.cohort import Subject, read_cohort, write_cohort
from mgkeras.data.stream import train_stream
from mgkeras.inference.forward import score_rows
from mgkeras.phantom.cohort import make_phantom
from mgkeras.runs.folds import assign_folds
from mgkeras.scores.metrics import auc_score
from mgkeras.settings import Settings, for_model, preset, with_values
from mgkeras.training.devices import choose_device
from mgkeras.training.fit import fold_seed, train_fold

FOLDS = 3
ANATOMICAL = {"training.augment": "anatomical", "training.turn_degrees": 15.0}
COSINE = {**ANATOMICAL, "training.schedule": "cosine", "training.warmup": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {  # what differs from the demo preset
    "demo": {},
    "none": {"training.augment": "none"},
    "anatomical": ANATOMICAL,
    "cosine": COSINE,
    "cosine-3e-3": {**COSINE, "training.learning_rate": 3e-3},
    "cosine-3e-4": {**COSINE, "training.learning_rate": 3e-4},
    "adamw": {**COSINE, "training.optimizer": "adamw", "training.weight_decay": 0.05},
    "strong": {**COSINE, "training.turn_degrees": 30.0, "training.scale": 0.2, "training.gain": 0.2},
    "geometry": {**COSINE, "training.gain": 0.0, "training.noise": 0.0},
    "paper-cosine": {**COSINE, "training.augment": "paper", "training.turn_degrees": 10.0},
    "epochs-x2": {**COSINE},  # see settings_of
    "mixup": {**COSINE},  # see mixed
}
MIXUP = 0.2  # alpha; Zhang et al. 2018 try 0.1 to 0.4 on images


def settings_of(config: str, arguments: argparse.Namespace, seed: int) -> Settings:
    """The settings of one training; shifts go up to a twelfth of the side, as in the demo preset."""
    epochs = arguments.epochs * (2 if config == "epochs-x2" else 1)
    base = {"training.epochs": epochs, "volume.side": arguments.side, "training.shift_voxels": arguments.side // 12}
    settings = with_values(preset("demo"), {**base, **CONFIGS[config]})
    return replace(for_model(settings, arguments.model), seed=seed)


def halves(table: Path) -> tuple[list[Subject], list[Subject]]:
    """The matched nodules, in two halves that share neither a patient nor a pair."""
    found = [subject for subject in read_cohort(table, "malignant").subjects if subject.covariates.get("matched_pair")]
    groups: list[tuple[set[str], list[Subject]]] = []  # of patients and pairs that hang together
    for subject in sorted(found, key=lambda one: one.name):
        names, members = {subject.covariates["patient"], subject.covariates["matched_pair"]}, [subject]
        for group in [group for group in groups if group[0] & names]:
            groups.remove(group)
            names, members = names | group[0], members + group[1]
        groups.append((names, members))
    parts: tuple[list[Subject], list[Subject]] = ([], [])
    for place in np.random.default_rng(0).permutation(len(groups)):
        parts[len(parts[1]) < len(parts[0])].extend(groups[place][1])
    return parts


def phantoms(trap: str, seed: int, arguments: argparse.Namespace) -> tuple[list[Subject], list[Subject]]:
    """100 to train on, 100 to score where the trap is harmless; true masks."""
    found = []
    for first, agreement in ((1000, 0.95), (3000, 0.5)):
        home = arguments.out / f"{trap}-{arguments.side}-{first + seed}"
        if not (home / "made").exists():
            traps = () if trap == "none" else (trap,)
            make_phantom(home, 100, arguments.side, first + seed, traps=traps, agreement=agreement)
            (home / "made").touch()
        subjects = read_cohort(home / "cohort.csv", "recurrence").subjects
        found.append([replace(subject, mask=home / "truth" / f"{subject.name}.nii.gz") for subject in subjects])
    return found[0], found[1]


def mixed(batches: tf.data.Dataset, seed: int) -> tf.data.Dataset:
    """Mixup (Zhang et al. 2018): each volume is mixed with the next of its batch, by a share of Beta(MIXUP, MIXUP).

    Args:
        batches: of train_stream, without weights.
        seed: of the shares; a batch's are the same in each run.

    Returns:
        Batches of twice the size: each mixed volume once with either label, weighted by that label's share, so the
        weighted cross-entropy is mixup's. The masks are the first volume's: for models that have no Dice term.
    """

    def mix(number: tf.Tensor, batch: tuple) -> tuple:
        inputs, label = batch
        drawn = [tf.random.stateless_gamma(tf.shape(label), [seed, 2 * number + half], MIXUP) for half in (0, 1)]
        first, second = (tf.maximum(one, 1e-30) for one in drawn)  # of a small alpha a draw can be 0
        share = first / (first + second)
        volume = tf.cast(inputs["volume"], tf.float32)
        kept = share[:, None, None, None, None]
        volume = tf.cast(kept * volume + (1 - kept) * tf.roll(volume, 1, axis=0), tf.float16)
        twice = {"volume": tf.concat([volume] * 2, 0), "mask": tf.concat([inputs["mask"]] * 2, 0)}
        return twice, tf.concat([label, tf.roll(label, 1, axis=0)], 0), tf.concat([share, 1 - share], 0)

    return batches.enumerate().map(mix)


def trained(
    config: str, seed: int, fold: int, train: Sequence[Subject], test: Sequence[Subject], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Scores of one training; ``auc`` is of those it was not trained on."""
    settings, began = settings_of(config, arguments, seed), time.monotonic()
    both = [*train, *test]
    cache = cached(both, settings, arguments.out / "cache")
    labels, rows = np.array([one.label for one in both]), np.arange(len(train))
    others = np.arange(len(train), len(both))
    device = choose_device(precision="float32")
    with mock.patch("mgkeras.training.fit.train_stream", _mixed_stream if config == "mixup" else train_stream):
        model, history = train_fold(cache, labels, rows, settings, device, seed=fold_seed(settings, fold))
    inside, outside = (score_rows(model, cache, some, causal=False).probability for some in (rows, others))
    row = {
        "steps": settings.training.epochs * -(-len(train) // settings.training.batch_size),
        "auc_train": auc_score(labels[rows], inside),
        "auc": auc_score(labels[others], outside),
        "ce": history[-1]["ce"],
        "seconds": time.monotonic() - began,
    }
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def _mixed_stream(*arguments: Any) -> tf.data.Dataset:
    settings = arguments[3]
    return mixed(train_stream(*arguments), settings.seed)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row a config: means over folds and seeds."""
    names = [name for name in ("auc_train", "auc", "ce", "seconds") if any(name in row for row in rows)]
    lines = ["| settings | trainings | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for config in dict.fromkeys(row["config"] for row in rows):
        own = [row for row in rows if row["config"] == config]
        cells = [f"{np.mean([row[name] for row in own]):.{0 if name == 'seconds' else 3}f}" for name in names]
        lines.append(f"| {config} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, default=Path("../shared/data/lidc/cohort.csv"))
    parser.add_argument("--out", type=Path, default=Path("runs/preset"))
    parser.add_argument("--log", type=Path, default=Path(__file__).with_name("preset.jsonl"), help="results")
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--model", default="no-mask")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--trap", help="of the phantom, or none; instead of nodules")
    parser.add_argument("--write-halves", type=Path, help="a folder for the tables A.csv and B.csv; trains nothing")
    parser.add_argument("--quick", action="store_true", help="to see that it works: its numbers say nothing")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table of what is there")
    arguments = parser.parse_args()
    if arguments.write_halves:
        for name, subjects in zip("AB", halves(arguments.cohort), strict=True):
            print(write_cohort(arguments.write_halves / f"{name}.csv", subjects, "malignant"))
        return
    if arguments.quick:
        arguments.configs, arguments.epochs, arguments.side = ["demo", "cosine"], 2, 16
        arguments.log = arguments.out / "quick.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.log
    same = {name: getattr(arguments, name) for name in ("model", "epochs", "side", "trap")}
    for seed in [] if arguments.table else arguments.seeds:
        for config in arguments.configs:
            for fold in range(1 if arguments.trap else FOLDS):
                key = {"config": config, "seed": seed, "fold": fold, **same}
                if any(key.items() <= row.items() for row in rows_of(log)):
                    continue
                if arguments.trap:
                    train, test = phantoms(arguments.trap, seed, arguments)
                else:
                    subjects = halves(arguments.cohort)[0]
                    held_out_in = assign_folds(subjects, FOLDS, seed)
                    train = [subject for subject in subjects if held_out_in[subject.name] != fold]
                    test = [subject for subject in subjects if held_out_in[subject.name] == fold]
                row = key | trained(config, seed, fold, train, test, arguments)
                print(json.dumps(row), flush=True)
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(table([row for row in rows_of(log) if same.items() <= row.items()]))


def rows_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


if __name__ == "__main__":
    main()
