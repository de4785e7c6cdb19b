"""PyTorch's DataLoader making the 34 variants, for speed.py: with TorchIO, and with this project's apply_variant.

Every loader draws (subject, variant) pairs in random order, with as many worker processes as there are cores, and hands
out what stream.train_stream does: (b, 1, s, s, s) float16 volumes and bool masks.

TorchIO is used at its best: orientations by ToOrientation and shifts by Crop and Pad, which move voxels and do not
interpolate; only the turns are an Affine.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from speed_measure import TRAINING, Row, Task, random_volumes, rates, read_synthetic, row_of
from torch.utils.data import DataLoader, Dataset

from mgkeras.data.augment import ORIENTATIONS, PAPER, SHIFTS, Variant, apply_variant
from mgkeras.settings import Settings

SHIFT, TURN = Settings().training.shift_voxels, Settings().training.turn_degrees


class Variants(Dataset):
    """The 34 variants of 92 subjects: item i is variant i % 34 of subject i // 34, from one of the SOURCES."""

    def __init__(self, source: str, folder: Path, side: int) -> None:
        self.source, self.folder, self.side, self.maps = source, folder, side, None

    def __len__(self) -> int:
        return TRAINING * len(PAPER)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.maps is None:  # in the worker
            self.maps = read_synthetic(self.folder, self.side)
        subject, variant = index // len(PAPER) % len(self.maps[0]), PAPER[index % len(PAPER)]
        volume, mask = SOURCES[self.source](self, subject, variant)
        return volume[None], mask[None]


def _own(data: Variants, subject: int, variant: Variant):
    return tuple(torch.from_numpy(apply_variant(array[subject], variant, SHIFT)) for array in data.maps)


def _torchio_memory(data: Variants, subject: int, variant: Variant):
    volume, mask = (array[subject, 0] for array in data.maps)
    return _torchio(as_subject(volume, mask), variant)


def _torchio_nifti(data: Variants, subject: int, variant: Variant):
    import torchio

    image, label = (str(path) for path in nifti_paths(data.folder, data.side, subject))
    return _torchio(torchio.Subject(volume=torchio.ScalarImage(image), mask=torchio.LabelMap(label)), variant)


SOURCES = {"own": _own, "memory": _torchio_memory, "nifti": _torchio_nifti}


def as_subject(volume: np.ndarray, mask: np.ndarray):
    """A torchio.Subject of a cube and its mask (s, s, s); TorchIO computes in float32."""
    import torchio

    return torchio.Subject(
        volume=torchio.ScalarImage(tensor=torch.from_numpy(volume.astype(np.float32))[None]),
        mask=torchio.LabelMap(tensor=torch.from_numpy(mask.astype(np.uint8))[None]),
    )


def _torchio(subject, variant: Variant) -> tuple[torch.Tensor, torch.Tensor]:
    subject = torchio_variant(subject, variant)
    return subject["volume"].data[0].half(), subject["mask"].data[0].bool()


def torchio_variant(subject, variant: Variant):
    """What augment.apply_variant makes of a stored volume, by TorchIO of the volume as it is."""
    import torchio

    if variant.stored:
        turn = TURN if variant.stored == 2 else -TURN
        return torchio.Affine(1, (0, 0, turn), 0, default_pad_value=0, copy=False)(subject)
    if any(variant.shift):
        crop = [width for way in variant.shift for width in ((0, SHIFT) if way > 0 else (SHIFT, 0))]
        pad = [width for way in variant.shift for width in ((SHIFT, 0) if way > 0 else (0, SHIFT))]
        return torchio.Pad(pad, padding_mode=0, copy=False)(torchio.Crop(crop, copy=False)(subject))
    letters = ("LPI"[axis] if flip else "RAS"[axis] for axis, flip in zip(variant.axes, variant.flips, strict=True))
    return torchio.ToOrientation("".join(letters), copy=False)(subject)


def same_variants() -> str:
    """Whether TorchIO's orientations and shifts are this project's, voxel by voxel, on a small cube: a note."""
    volumes, masks = random_volumes(1, 2 * SHIFT + 4)
    stored = [np.repeat(array, 3, axis=0) for array in (volumes, masks)]
    different = 0
    for variant in (*ORIENTATIONS, *SHIFTS):
        theirs = _torchio(as_subject(volumes[0], masks[0]), variant)
        ours = [apply_variant(array, variant, SHIFT) for array in stored]
        different += not all(np.array_equal(a.numpy(), b) for a, b in zip(theirs, ours, strict=True))
    return f"{different} of 32 exact variants differ from mgkeras" if different else "its 32 exact variants equal ours"


def nifti_paths(folder: Path, side: int, subject: int) -> tuple[Path, Path]:
    return folder / f"nifti-{side}" / f"{subject}-image.nii.gz", folder / f"nifti-{side}" / f"{subject}-mask.nii.gz"


def write_niftis(folder: Path, side: int) -> None:
    """The synthetic cache's volumes as they are, int16 in thousandths and uint8, as .nii.gz of voxels of 1 mm."""
    import nibabel as nib

    (folder / f"nifti-{side}").mkdir(exist_ok=True)
    for subject, (volume, mask) in enumerate(zip(*(a[:, 0] for a in read_synthetic(folder, side)), strict=True)):
        for values, path in zip(
            (volume.astype(np.float32) * 1000, mask), nifti_paths(folder, side, subject), strict=True
        ):
            nib.save(nib.Nifti1Image(values.astype(np.uint8 if values.dtype == bool else np.int16), np.eye(4)), path)


def stream(key: str, task: Task) -> list[Row]:
    """Volumes a second of the DataLoader that the key names."""
    source = key.removeprefix("stream-torchio-").removeprefix("stream-torch-")
    workers, notes = len(os.sched_getaffinity(0)), []
    if source == "nifti":
        write_niftis(task.folder, task.side)
    if source != "own":
        notes.append(same_variants())
    torch.set_num_threads(1)
    loader = DataLoader(
        Variants(source, task.folder, task.side),
        task.batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        prefetch_factor=4,
    )
    values = rates(task, (volumes.shape[0] for _ in range(1 << 20) for volumes, _ in loader))
    what = {
        "own": "PyTorch DataLoader, mgkeras' apply_variant, memory map",
        "memory": "PyTorch DataLoader + TorchIO, the same memory map",
        "nifti": "PyTorch DataLoader + TorchIO, .nii.gz of the cubes",
    }[source]
    return [row_of("stream", key, what, task, "volumes/s", values, note="; ".join([f"{workers} workers", *notes]))]
