"""Does guidance guide? Trains each model once a seed on a trap and scores it on new patients.

    python benchmarks/guidance.py [--seeds 0 1 2] [--models no-mask guided guided-context] [--epochs 60]

A trap cohort of 100 phantoms (the spot at the chest wall agrees with recurrence in 95 %) is trained on whole, without
folds. Scored on 100 new patients where the spot still leaks (LEAK), on 100 where it is harmless (HARMLESS: its
agreement is 50 %), and by the causal scores. Nothing was tuned on the guided models: the phantom's texture contrast was
chosen on the no-mask model alone. Masks are those that fuzzy C-means makes, as a user would have them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from mgkeras.data.cache import Cache, cached
from mgkeras.data.cohort import read_cohort
from mgkeras.data.phantom import make_phantom
from mgkeras.evaluation.attention import attention_scores
from mgkeras.evaluation.metrics import auc_score
from mgkeras.settings import Settings, for_model, preset
from mgkeras.training.devices import choose_device
from mgkeras.training.fit import fold_seed, train_fold
from mgkeras.training.predict import score_rows


def cohort(folder: Path, seed: int, agreement: float, arguments, settings: Settings) -> tuple[Cache, np.ndarray]:
    options = {} if arguments.texture is None else {"texture": arguments.texture}
    name = f"phantom-{arguments.subjects}-{settings.volume.side}-{seed}-{agreement}-{arguments.texture}"
    table = folder / name / "cohort.csv"
    if not table.exists():
        make_phantom(folder / name, arguments.subjects, settings.volume.side, seed, traps=["spot"],
                     agreement=agreement, **options)  # fmt: skip
    subjects = read_cohort(table, "recurrence").subjects
    return cached(subjects, settings, folder / "cache"), np.array([subject.label for subject in subjects])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=["no-mask", "guided", "guided-context"])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--texture", type=float, help="the phantom's rim contrast; its own default where left out")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    base = preset("demo")
    base = replace(base, training=replace(base.training, epochs=arguments.epochs))
    device = choose_device()
    rows = []
    for seed in arguments.seeds:
        trap = cohort(arguments.out, 1000 + seed, 0.95, arguments, base)
        leak = cohort(arguments.out, 2000 + seed, 0.95, arguments, base)
        harmless = cohort(arguments.out, 3000 + seed, 0.5, arguments, base)
        for name in arguments.models:
            began = time.monotonic()
            settings = replace(for_model(base, name), seed=seed)
            cache, labels = trap
            model, history = train_fold(cache, labels, range(len(labels)), settings, device,
                                        seed=fold_seed(settings, 0))  # fmt: skip
            row = {"model": name, "seed": seed, **score(model, trap, leak, harmless), "ce": history[-1]["ce"],
                   "dice": history[-1]["dice"], "seconds": time.monotonic() - began}  # fmt: skip
            rows.append({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
            print(json.dumps(rows[-1]), flush=True)
    with open(arguments.out / "guidance.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows, arguments.models))


def score(model, trap, leak, harmless) -> dict[str, float]:
    found = {}
    for name, (cache, labels) in (("train", trap), ("leak", leak), ("harmless", harmless)):
        scored = score_rows(model, cache, range(len(labels)), causal=name == "leak")
        found[f"auc_{name}"] = auc_score(labels, scored.probability)
        if name == "leak":
            known = ~np.isnan(scored.outside_blurred)
            found["auc_tumour_only"] = auc_score(labels[known], scored.outside_blurred[known])
            found["auc_outside_only"] = auc_score(labels[known], scored.inside_blurred[known])
            each = [
                attention_scores(scored.maps[i, ..., c], scored.attention[i], cache.mask[i, 0], cache.voxel_mm[i])
                for i, c in enumerate(scored.predicted)
            ]
            for key in ("mass_in_mask", "mass_chance", "mass_voxelwise", "mass_voxelwise_ceiling", "peak_in_mask"):
                found[key] = float(np.mean([one[key] for one in each if one[key] is not None]))
            found["undefined_maps"] = sum(one["mass_in_mask"] is None for one in each)
    return found


COLUMNS = (
    ("AUC, spot leaks", "auc_leak", None), ("AUC, spot harmless", "auc_harmless", None),
    ("AUC, tumour only", "auc_tumour_only", None), ("AUC, outside only", "auc_outside_only", None),
    ("mass in tumour (chance)", "mass_in_mask", "mass_chance"),
    ("voxel-wise (ceiling)", "mass_voxelwise", "mass_voxelwise_ceiling"),
    ("peak in tumour", "peak_in_mask", None), ("dead maps", "undefined_maps", None), ("CE", "ce", None),
    ("Dice", "dice", None), ("seconds", "seconds", None),
)  # fmt: skip


def table(rows: list[dict], models: list[str]) -> str:
    """The rows as Markdown: mean over seeds, of an AUC the worst seed in brackets."""
    lines = ["| model | " + " | ".join(name for name, _, _ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for model in models:
        own = [row for row in rows if row["model"] == model]
        cells = []
        for _, key, beside in COLUMNS:
            values = [float(row[key]) for row in own]
            digits = 0 if key in ("seconds", "undefined_maps") else 2
            text = f"{np.mean(values):.{digits}f}"
            if beside:
                text += f" ({np.mean([float(row[beside]) for row in own]):.2f})"
            elif key.startswith("auc"):
                text += f" ({min(values):.2f})"
            cells.append(text)
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Mean over {len({row['seed'] for row in rows})} seeds; of an AUC the worst seed in "
                      "brackets."])  # fmt: skip


if __name__ == "__main__":
    main()
