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
from mgkeras.scores.format import as_markdown, cell, signed, text
from mgkeras.scores.metrics import auc_score, paired_bootstrap_difference
from mgkeras.scores.summary import with_interval
from mgkeras.settings import MODELS

DRAWS = {"samples": 2000, "seed": 0}  # of the bootstrap, as evaluate's
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


def held_out(folder: Path) -> dict[str, float]:
    """A run's probability of each held-out subject."""
    rows = read_rows(folder / "predictions.csv")
    return {row["subject"]: float(row["probability"]) for row in rows if row["split"] == "held-out"}


def labels_and_patients(subjects: Sequence[Subject]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) labels, and (n,) numbers that the nodules of one patient share."""
    patients = np.unique([subject.covariates["patient"] for subject in subjects], return_inverse=True)[1]
    return np.array([subject.label for subject in subjects]), patients


def values_of(scores: Mapping[str, float], subjects: Sequence[Subject]) -> np.ndarray:
    return np.array([scores[subject.name] for subject in subjects])


def part(scores: Mapping[str, float], subjects: Sequence[Subject]) -> str:
    """The AUC of scores by subject among some subjects, pooled over folds; its interval is over patients."""
    labels, patients = labels_and_patients(subjects)
    return cell(with_interval(auc_score, labels, values_of(scores, subjects), patients=patients, **DRAWS))


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
    volumes = values_of(plain["volume, not fitted"], subjects)
    groups = {"of half B": second}
    if len(others) > len(second):
        groups = {"of the matched": [*first, *second], "without half A's patients": others, **groups}
    networks = [model for model in found["models"] if model["kind"] == "network"]
    scores, rests = [], []
    for model in found["models"]:
        row = {"model": model["name"], "AUC in training": "-", "AUC held out": cell(model["pooled"]["auc"])}
        if model not in networks:
            scores.append(row | dict.fromkeys(groups, "-"))
            continue
        own = folder / Path(model["folder"]).name
        probability = held_out(own)
        row["AUC in training"] = text(read_json(own / "summary.json")["over_folds"]["auc_train"]["mean"])
        scores.append(row | {name: part(probability, group) for name, group in groups.items()})
        look, causal, probes = model["attention"]["all"], model["causal"], model["probes"]
        moved = probes["transplant"] or {}  # not of mask-only
        tumour = next(one for one in probes["ledger"]["parts"] if one["part"] == "tumour")
        follows = spearmanr(values_of(probability, subjects), volumes).statistic
        rests.append(
            {
                "model": model["name"],
                "evidence in the nodule (chance)": f"{text(look['mass_in_mask']['mean'])} "
                f"({text(look['mass_chance']['mean'])})",
                "AUC, nodule only": cell(causal["auc_outside_blurred"]),
                "AUC, nodule blurred": cell(causal["auc_inside_blurred"]),
                "transplant, by owner": cell(moved.get("owner", {})),
                "by surroundings": cell(moved.get("breast", {})),
                "variance of the evidence, nodule": cell(tumour["variance"]),
                "rank correlation with volume": text(follows),
            }
        )
    for name, values in plain.items():
        row = {"model": name, "AUC in training": "-", "AUC held out": part(values, subjects)}
        scores.append(row | {group: part(values, members) for group, members in groups.items()})
    beside = [
        model["name"]
        for model in found["models"]
        if model in networks or model["name"] in ("tumour volume", "radiomics")
        if model["pooled"]["auc"]["value"] >= 0.5  # a fitted baseline that knows nothing is under it
    ]
    pairs = [
        {
            "difference": f"{pair['a']} less {pair['b']}",
            "AUC": difference(pair["bootstrap"]),
            "DeLong p": text((pair["delong"] or {}).get("p"), 3),
        }
        for pair in found["pairs"]
        if pair["b"] in beside
    ]
    return "\n".join(as_markdown(rows) for rows in (scores, rests, pairs))


def difference(found: Mapping[str, Any] | None) -> str:
    """'+0.10 (+0.01 to +0.18)' of a paired bootstrap; '-' where it is undefined."""
    return signed({**found, "value": found["difference"]}) if found else "-"


def gains(larger: Path, smaller: Path, cohort: Path) -> str:
    """What more nodules give on the matched ones: AUC of the runs on all less that of the runs on the matched alone."""
    first, second = halves(cohort)
    both = [*first, *second]
    labels, patients = labels_and_patients(both)
    rows = []
    for model in MODELS:
        scores = [values_of(held_out(folder / model), both) for folder in (larger, smaller)]
        gain = difference(paired_bootstrap_difference(labels, *scores, patients=patients, **DRAWS))
        rows.append({"model": model, "AUC among the matched, trained on all less trained on them alone": gain})
    return as_markdown(rows)


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
