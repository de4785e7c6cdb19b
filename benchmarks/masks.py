"""How good are the tumour masks on phantoms, where the truth is known?

python benchmarks/masks.py [--subjects 100] [--side 48] [--seed 101]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from mgkeras.data.cohort import read_cohort
from mgkeras.data.tumour import subject_mask
from mgkeras.phantom.cohort import make_phantom
from mgkeras.settings import MaskSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--seed", type=int, default=101)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = make_phantom(Path(folder), arguments.subjects, arguments.side, arguments.seed, traps=["spot"])
        dices, strangers, found, there = [], 0, 0, 0
        for subject in read_cohort(table, "recurrence").subjects:
            mask = subject_mask(subject, MaskSettings())[1].mask
            truth = nib.as_closest_canonical(nib.load(table.parent / "truth" / f"{subject.name}.nii.gz"))
            truth = np.asarray(truth.dataobj) > 0
            dices.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
            labels, count = ndimage.label(mask)
            strangers += any(not truth[labels == label].any() for label in range(1, count + 1))
            tumours, number = ndimage.label(truth)
            there += number
            found += sum(mask[tumours == label].any() for label in range(1, number + 1))
    print(
        f"{len(dices)} phantoms of side {arguments.side}, seed {arguments.seed}: Dice mean {np.mean(dices):.3f}, "
        f"lowest {min(dices):.3f}; {strangers} subjects with a component outside the tumour; {found} of {there} "
        "tumours found"
    )


if __name__ == "__main__":
    main()
