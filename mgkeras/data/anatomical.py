"""Changes of a volume that another exam could have: left and right exchanged, turned, moved, scaled, brighter, noisier.

The paper's 24 orientations (:mod:`mgkeras.data.augment`) show a network exams that lie on their side or head down, as
none ever does. Here each volume is resampled once, and its mask by the same map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mgkeras.settings import TrainingSettings

NUMBERS = 2**31  # of a draw: so many that two draws of a training are hardly ever the same


@dataclass(frozen=True)
class Change:
    """What is done to a volume.

    Attributes:
        exchange: whether left and right are exchanged, before all else.
        turns: degrees about the axes x, y, z through the cube's centre, in this order.
        scale: of lengths; 1.1 makes everything a tenth larger.
        shift: voxels along x, y, z, after turn and scale.
        gain: intensities are multiplied by it.
        noise: standard deviation of the Gaussian noise that is added to voxels above the background, in the volume's
            units; ``seed`` is the noise's.
    """

    exchange: bool = False
    turns: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gain: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def inverse(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """(3, 3) and (3,): the voxel of the volume that comes to lie at voxel v is matrix @ v + offset."""
        mirror = np.diag([-1.0 if self.exchange else 1.0, 1.0, 1.0])
        forward = self.scale * Rotation.from_euler("xyz", self.turns, degrees=True).as_matrix() @ mirror
        matrix, middle = np.linalg.inv(forward), np.full(3, (side - 1) / 2)
        return matrix, middle - matrix @ (middle + self.shift)


def drawn(number: int, training: TrainingSettings) -> Change:
    """The change of a number below NUMBERS; the same for the same number and settings.

    Turns go up to ``turn_degrees`` about each axis and shifts up to ``shift_voxels`` along each, uniformly; scale and
    gain up to their share of 1 either way, uniformly in the logarithm; noise up to ``noise``; left and right are
    exchanged in half of the draws.
    """
    rng = np.random.default_rng(number)
    exchange = bool(rng.integers(2))
    turns = rng.uniform(-1, 1, 3) * training.turn_degrees
    shift = rng.uniform(-1, 1, 3) * training.shift_voxels
    scale, gain = (float((1 + most) ** rng.uniform(-1, 1)) for most in (training.scale, training.gain))
    noise = float(rng.uniform(0, training.noise))
    return Change(exchange, tuple(turns.tolist()), scale, tuple(shift.tolist()), gain, noise, number)


def changed(cube: np.ndarray, change: Change, background: float, ceiling: float, out: np.ndarray) -> None:
    """Writes the changed volume to ``out``.

    Args:
        cube: (side, side, side) RAS+, float, in [0, ceiling]; interpolated linearly. Of several channels, the last
            axis, all are changed alike, and each has noise of its own.
        change: what is done.
        background: fills what comes in from outside; the voxels at or below it get no noise.
        ceiling: values are cut at 0 and at it; of a subtraction, which has negative ones, at - ceiling and at it.
        out: the same shape, any float.
    """
    for channel in range(cube.shape[3]) if cube.ndim == 4 else ():
        own = replace(change, seed=change.seed + channel)
        changed(cube[..., channel], own, background, ceiling, out[..., channel])
    if cube.ndim == 4:
        return
    matrix, offset = change.inverse(len(cube))
    found = ndimage.affine_transform(
        np.asarray(cube, np.float32), matrix, offset, order=1, mode="constant", cval=background
    )
    low = -ceiling if found.min() < 0 else 0.0
    tissue = found != background if low else found > background
    found *= np.float32(change.gain)
    if change.noise:
        noise = np.random.default_rng([change.seed, 1]).standard_normal(found.shape, np.float32)
        found += np.where(tissue, noise * np.float32(change.noise), 0)
    np.clip(found, low, ceiling, out=found)
    out[...] = found


def moved(mask: np.ndarray, change: Change, out: np.ndarray) -> None:
    """Writes the mask (side, side, side) bool, moved as :func:`changed` moves the volume, to ``out``; nearest voxel."""
    matrix, offset = change.inverse(len(mask))
    ndimage.affine_transform(
        mask.view(np.uint8), matrix, offset, output=out.view(np.uint8), order=0, mode="constant", cval=0
    )
