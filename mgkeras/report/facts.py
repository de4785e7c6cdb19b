"""What a report is made of besides evaluation.json: plain values that the page shows, read from the runs' files.

Glossary:
    network: a run of `mgkeras fit` that evaluation.json scores as a model of its own.
    case: one subject in the report's viewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mgkeras.figures.figure3 import Panel

Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class RunFacts:
    """One network's files.

    Attributes:
        name: as evaluation.json calls it.
        settings, environment, folds, data: the content of its JSON files; {} where a file is missing.
        cohort, masks: the rows of its CSV files, values are text; () where a file is missing.
        histories: {'epoch', 'ce', 'dice'}: the folds' mean by epoch.
        seconds: what training took, all folds.
        weights: numbers in one fold's weights.h5, None where it is missing.
    """

    name: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    folds: Mapping[str, Any]
    data: Mapping[str, Any]
    cohort: Rows
    masks: Rows
    histories: Mapping[str, Sequence[float]]
    seconds: float | None = None
    weights: int | None = None

    @property
    def guided(self) -> bool:
        """Whether its map is trained to lie in the tumour."""
        return bool(self.settings.get("guidance", {}).get("lambda_dice"))

    @property
    def kept_mm(self) -> float | None:
        """What stays around its masks where all else is blurred; None where its settings do not say."""
        return self.settings.get("guidance", {}).get("dilation_mm")

    @property
    def boxed(self) -> bool:
        """Whether it sees the tumour's box only, on whose grid its maps then lie."""
        return self.settings.get("model") == "mask-only"


@dataclass(frozen=True)
class Case:
    """One subject of the viewer: gzipped NIfTI files as base64 text, and what is said of it.

    Attributes:
        name: the subject. reasons: why it is shown.
        label: 0 or 1.
        early, mask: the cube, uint8, RAS+ axes, with an affine to scanner mm; the mask's voxels are 0 and 1.
        maps: {model: g^3 int8 decision map on its own grid, plus or minus 127 is the largest absolute value}.
        looks: {model: {'p', 'mass', 'chance', 'peak_mm' (numbers or None), 'peak' (where the map is strongest)}}.
        centre: of the tumour, shares of the cube along its axes; of the cube where the mask is empty.
        tumour: whether the mask holds a voxel.
        side, voxel_mm: of the cube.
    """

    name: str
    reasons: tuple[str, ...]
    label: int
    early: str
    mask: str
    maps: Mapping[str, str]
    looks: Mapping[str, Mapping[str, Any]]
    centre: tuple[float, float, float]
    tumour: bool
    side: int
    voxel_mm: float

    @property
    def size(self) -> int:
        """Bytes it adds to the page, nearly."""
        return len(self.early) + len(self.mask) + sum(map(len, self.maps.values())) + 1000


@dataclass(frozen=True)
class Viewer:
    """The viewer's subjects.

    Attributes:
        cases: in the order in which they are leafed through.
        models: whose maps it holds.
        left_out: subjects that the rule chose and that did not fit into the page.
        unread: {subject: why} of those whose exams could not be read.
    """

    cases: tuple[Case, ...] = ()
    models: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    unread: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Facts:
    """What report.collect collects.

    Attributes:
        runs: the networks, in evaluation.json's order.
        phantom: whether the cohort is synthetic.
        panels: of Figure 3, [] where the exams cannot be read.
        chosen: {subject: why it is to be in the viewer}, in order.
        version: of this package.
    """

    runs: tuple[RunFacts, ...]
    phantom: bool
    panels: tuple[Panel, ...] = ()
    chosen: Mapping[str, tuple[str, ...]] | None = None
    version: str = ""


def peak_of(cells: np.ndarray) -> tuple[float, float, float]:
    """Where a (g, g, g) map is strongest, of any sign: the cell's centre in shares of the cube; of equals the first."""
    index = np.unravel_index(int(np.argmax(np.abs(cells))), cells.shape)
    x, y, z = (float((i + 0.5) / n) for i, n in zip(index, cells.shape, strict=True))
    return x, y, z
