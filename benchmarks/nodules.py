"""What the models learn from real images: fits, evaluates and tables them on lung nodules of LIDC-IDRI; resumes.

    python benchmarks/nodules.py                         all four models on all nodules and on the matched ones: hours
    python benchmarks/nodules.py --tables matched --augment paper
    python benchmarks/nodules.py --table                 train nothing, print the tables of what is there

The cohort is ../shared/data/lidc: crops around 500 nodules that radiologists rated malignant or benign, with masks. 138
are pairs of a malignant and a benign nodule of like volume (matched); the others can be told by their volume. Half A of
the matched chose settings (preset.py), half B chose nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from preset import halves
from scipy.stats import spearmanr

from mgkeras.data.cohort import Subject, read_cohort, write_cohort
from mgkeras.data.volume import load_volume
from mgkeras.runs.store import read_json, read_rows
from mgkeras.scores.metrics import auc_score, bootstrap_interval, paired_bootstrap_difference

MODELS = ("no-mask", "mask-only", "guided", "guided-context")
OPTIONS = "--outcome malignant --model all --preset workstation --side 32 --shift-voxels 2 --folds 5 --yes"


def run(*words: str | Path) -> None:
    """A command of mgkeras, in a process of its own; its output is shown."""
    subprocess.run([sys.executable, "-m", "mgkeras", *map(str, words)], check=True)


def made(cohort: Path, out: Path, name: str, augment: str, seed: int, *, train: bool) -> Path:
    """The folder with one run a model and evaluation/evaluation.json; ``train`` makes what is missing."""
    parts = [name, augment * (augment != "anatomical"), f"seed-{seed}" * bool(seed)]
    folder = out / "-".join(filter(None, parts))
    if train:
        subjects = read_cohort(cohort, "malignant").subjects
        own = [subject for subject in subjects if name == "all" or subject.covariates.get("matched_pair")]
        table = write_cohort(out / f"{name}.csv", own, "malignant")
        run("fit", table, *OPTIONS.split(), "--augment", augment, "--seed", str(seed), "--out", folder)
        seen = ("--clinical", "spiculation,texture")  # as the radiologists rated them
        run("evaluate", *(folder / model for model in MODELS), *seen, "--out", folder / "evaluation")
    return folder


def interval(score: Mapping[str, Any] | None, key: str = "value", sign: str = "") -> str:
    """'0.56 (0.45 to 0.65)'; '-' of a score that is not there."""
    if not score or score.get(key) is None:
        return "-"
    return f"{score[key]:{sign}.2f} ({score['low']:{sign}.2f} to {score['high']:{sign}.2f})"


def held_out(folder: Path) -> dict[str, float]:
    """A run's probability of each held-out subject."""
    rows = read_rows(folder / "predictions.csv")
    return {row["subject"]: float(row["probability"]) for row in rows if row["split"] == "held-out"}


def part(scores: Mapping[str, float], subjects: Sequence[Subject]) -> str:
    """The AUC of scores by subject among some subjects, pooled over folds; its interval is over patients."""
    labels = np.array([subject.label for subject in subjects])
    patients = np.unique([subject.covariates["patient"] for subject in subjects], return_inverse=True)[1]
    found = np.array([scores[subject.name] for subject in subjects])
    low, high = bootstrap_interval(auc_score, labels, found, patients=patients) or (np.nan, np.nan)
    return f"{auc_score(labels, found):.2f} ({low:.2f} to {high:.2f})"


def training_auc(folder: Path) -> str:
    """The mean over folds of the AUC among the subjects that a fold was trained on."""
    rows = [row for row in read_rows(folder / "predictions.csv") if row["split"] == "train"]
    aucs = []
    for fold in sorted({row["fold"] for row in rows}):
        own = [row for row in rows if row["fold"] == fold]
        aucs.append(auc_score([int(row["label"]) for row in own], [float(row["probability"]) for row in own]))
    return f"{np.mean(aucs):.2f}"


def plain_scores(subjects: Sequence[Subject]) -> dict[str, dict[str, float]]:
    """{what it is: {subject: value}}: scores that nothing was fitted for, so they have no folds."""
    volumes = {subject.name: float(subject.covariates["volume_mm3"]) for subject in subjects}
    shares, heights = {}, {}
    for subject in subjects:
        mask = load_volume(subject.mask or subject.early_file)  # RAS+, on the exam's grid
        edge = max(np.multiply(mask.data.shape, mask.zooms))
        shares[subject.name] = volumes[subject.name] / edge**3
        heights[subject.name] = float(np.ptp(np.nonzero(mask.data > 0)[2]) + 1) * mask.zooms[2]
    return {
        "volume, not fitted": volumes,
        "volume as a share of the network's cube, not fitted": shares,
        "extent along z, not fitted": heights,
    }


def tables(folder: Path, cohort: Path) -> str:
    """Scores, what they rest on, and differences between the networks, in three tables."""
    found = read_json(folder / "evaluation/evaluation.json")
    first, second = halves(cohort)
    chose = {subject.covariates["patient"] for subject in first}
    scored = held_out(folder / "no-mask")
    subjects = [one for one in read_cohort(cohort, "malignant").subjects if one.name in scored]
    others = [one for one in subjects if one.covariates["patient"] not in chose]
    plain = plain_scores(subjects)
    volumes = plain["volume, not fitted"]
    groups = {"of half B": second}
    if len(others) > len(second):
        groups = {"of the matched": [*first, *second], "without half A's patients": others, **groups}
    scores = [f"| model | AUC in training | AUC held out | {' | '.join(groups)} |", "|---" * (3 + len(groups)) + "|"]
    rests = [
        "| model | evidence in the nodule (chance) | AUC, nodule only | AUC, nodule blurred | transplant, by owner | "
        "by surroundings | variance of the evidence, nodule | rank correlation with volume |",
        "|---" * 8 + "|",
    ]
    for model in found["models"]:
        auc = interval(model["pooled"]["auc"])
        if model["kind"] != "network":
            scores.append(f"| {model['name']} | - | {auc} |" + " - |" * len(groups))
            continue
        own = folder / Path(model["folder"]).name
        probability = held_out(own)
        of_groups = [part(probability, group) for group in groups.values()]
        scores.append(f"| {model['name']} | {training_auc(own)} | {auc} | " + " | ".join(of_groups) + " |")
        look, causal, probes = model["attention"]["all"], model["causal"] or {}, model["probes"] or {}
        moved = probes.get("transplant") or {}
        parts = (probes.get("ledger") or {}).get("parts", [])
        cells = [
            f"{look['mass_in_mask']['mean']:.2f} ({look['mass_chance']['mean']:.2f})" if look else "-",
            *(interval(causal.get(f"auc_{name}_blurred")) for name in ("outside", "inside")),
            *(interval(moved.get(name)) for name in ("owner", "breast")),
            interval(next((one["variance"] for one in parts if one["part"] == "tumour"), None)),
            f"{spearmanr([probability[name] for name in volumes], list(volumes.values())).statistic:.2f}",
        ]
        rests.append(f"| {model['name']} | " + " | ".join(cells) + " |")
    for name, values in plain.items():
        cells = [part(values, group) for group in (subjects, *groups.values())]
        scores.append(f"| {name} | - | " + " | ".join(cells) + " |")
    pairs = ["| difference | AUC | DeLong p |", "|---" * 3 + "|"]
    beside = [
        model["name"]
        for model in found["models"]
        if model["kind"] == "network" or model["name"] in ("tumour volume", "radiomics")
        if model["pooled"]["auc"]["value"] >= 0.5  # a fitted baseline that knows nothing is under it
    ]
    for pair in [one for one in found["pairs"] if one["b"] in beside]:
        tested = pair["delong"]
        p = f"{tested['p']:.3f}" if tested and tested["p"] is not None else "-"
        pairs.append(f"| {pair['a']} less {pair['b']} | {interval(pair['bootstrap'], 'difference', '+')} | {p} |")
    return "\n\n".join("\n".join(lines) for lines in (scores, rests, pairs))


def gains(larger: Path, smaller: Path, cohort: Path) -> str:
    """What more nodules give on the matched ones: AUC of the runs on all less that of the runs on the matched alone."""
    first, second = halves(cohort)
    both = [*first, *second]
    labels = np.array([subject.label for subject in both])
    patients = np.unique([subject.covariates["patient"] for subject in both], return_inverse=True)[1]
    lines = ["| model | AUC among the matched, trained on all less trained on them alone |", "|---" * 2 + "|"]
    for model in MODELS:
        runs = [held_out(folder / model) for folder in (larger, smaller)]
        scores = [np.array([found[subject.name] for subject in both]) for found in runs]
        gain = paired_bootstrap_difference(labels, *scores, patients=patients)
        lines.append(f"| {model} | {interval(gain, 'difference', '+')} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, default=Path("../shared/data/lidc/cohort.csv"))
    parser.add_argument("--out", type=Path, default=Path("runs/nodules"))
    parser.add_argument("--tables", nargs="+", default=["matched", "all"], choices=["matched", "all"])
    parser.add_argument("--augment", default="anatomical", choices=["anatomical", "paper", "none"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="train nothing, print the tables of what is there")
    arguments = parser.parse_args()
    for name in arguments.tables:
        folder = made(
            arguments.cohort, arguments.out, name, arguments.augment, arguments.seed, train=not arguments.table
        )
        print(f"{name}, {arguments.augment}, seed {arguments.seed}\n\n{tables(folder, arguments.cohort)}\n")
        smaller = folder.with_name(folder.name.replace("all", "matched", 1))
        if name == "all" and (smaller / "evaluation").is_dir():
            print(f"{gains(folder, smaller, arguments.cohort)}\n")


if __name__ == "__main__":
    main()
