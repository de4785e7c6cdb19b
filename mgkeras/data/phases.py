"""The phases of an exam as the channels of its cube.

A cube of one channel is (side, side, side), of more (side, side, side, channels); a mask always (side, side, side). The
channels and their order are VolumeSettings.phases, their scale is that of the early phase, see settings.PHASES.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mgkeras.data.cohort import PRE_OR_MASK, Subject
from mgkeras.data.volume import ExamError, Volume, load_like, unit_of
from mgkeras.settings import VolumeSettings

_MADE_OF = {"pre": {"pre", "subtraction"}, "late": {"late"}}  # the channels that a column beside early is read for


def files_of(volume: VolumeSettings) -> tuple[str, ...]:
    """The columns of cohort.csv that channels are made of: early first, since it sets the scale."""
    return ("early", *(name for name, needs in _MADE_OF.items() if needs & {*volume.phases}))


def input_shape(volume: VolumeSettings) -> tuple[int, int, int, int]:
    """(side, side, side, channels), what the network gets of an exam."""
    return (volume.side, volume.side, volume.side, len(volume.phases))


def needed_columns(volume: VolumeSettings) -> tuple[str, ...]:
    """What open_cohort must ask for where a model is trained on these phases: its argument ``need``."""
    return (*files_of(volume), *(() if "pre" in files_of(volume) else (PRE_OR_MASK,)))


def check_phases(subject: Subject, volume: VolumeSettings) -> None:
    """Makes sure that a subject names the files that its channels are made of.

    Raises:
        ExamError: it lacks one.
    """
    if missing := [name for name in files_of(volume) if getattr(subject, name) is None]:
        raise ExamError(
            f"subject {subject.name}: expected the files {', '.join(files_of(volume))}, of which the channels "
            f"{', '.join(volume.phases)} are made. Received: none for {', '.join(missing)}"
        )


def load_others(subject: Subject, early: Volume, volume: VolumeSettings) -> dict[str, Volume]:
    """The phases beside the early phase that a subject's channels are made of, by their columns.

    Raises:
        ExamError: as check_phases, or a file that cannot be used or is not in the early phase's space.
    """
    check_phases(subject, volume)
    return {name: load_like(name, getattr(subject, name), early, subject.name) for name in files_of(volume)[1:]}


def channels_of(early: Volume, others: Mapping[str, Volume], volume: VolumeSettings) -> Iterator[np.ndarray]:
    """The channels of an exam on the early phase's grid, in the order of ``volume.phases``.

    Args:
        early: the early phase, any units. others: the phases of ``files_of(volume)`` beside it, in the same units.
        volume: of the run.

    Yields:
        (x, y, z) float32, 1 being the early phase's bright tissue: a phase in [0, ceiling], a subtraction in [-ceiling,
        ceiling].

    Raises:
        ExamError: a phase that is needed is not there, or the early phase is a constant volume or has no positive
            voxel.
    """
    phases, ceiling = {**others, "early": early}, volume.intensity_ceiling
    if missing := [name for name in files_of(volume) if name not in phases]:
        raise ExamError(
            f"expected {', '.join(files_of(volume))} for the channels {', '.join(volume.phases)}. Received: no "
            f"{', '.join(missing)}"
        )
    unit = unit_of(early.data)
    for name in volume.phases:
        if name == "subtraction":
            yield np.clip((early.data - phases["pre"].data) / unit, -ceiling, ceiling).astype(np.float32)
        else:
            yield np.clip(phases[name].data / unit, 0.0, ceiling).astype(np.float32)


def cube_shape(volume: VolumeSettings) -> tuple[int, ...]:
    """Of a cube as it is stored: input_shape, without the last axis where there is one channel."""
    return input_shape(volume)[: 4 if len(volume.phases) > 1 else 3]


def as_batch(cubes: np.ndarray) -> np.ndarray:
    """Cubes (b, side, side, side) or (b, side, side, side, channels) as the network gets them, always the latter."""
    return cubes.reshape(*cubes.shape[:4], -1)


def first_channel(image: np.ndarray) -> np.ndarray:
    """(x, y, z) of a cube of one channel or of more: what is drawn, and what tells body from air."""
    return image[..., 0] if image.ndim == 4 else image


def over(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A mask (x, y, z) that goes with an image of one channel or of more in NumPy's arithmetic."""
    return mask[..., None] if image.ndim == 4 else mask
