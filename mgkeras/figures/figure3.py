"""Pictures, drawn with matplotlib's objects (Figure, never pyplot), so that they need no display and keep no state.

Colours are safe for the colour-blind: for maps warm where there is evidence for the predicted class, cool where there
is evidence against it, brighter the stronger it is, and none at 0; cyan for the tumour's outline, Okabe and Ito's
palette for curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from mgkeras.data.io import written_whole
from mgkeras.errors import InputError
from mgkeras.scores.attention import enlarge, peak_distance_mm

UNDATED = {".svg": "Date", ".pdf": "CreationDate"}  # where matplotlib writes the time
WARM = ("#a81400", "#e8450a", "#ff8c0f", "#ffc400")  # from weak to strong
COOL = ("#2a10a0", "#4a2fe0", "#6a5cff", "#9a90ff")
EVIDENCE = LinearSegmentedColormap.from_list("evidence", (*COOL[::-1], *WARM))
OPAQUE = 0.75  # of a map over the early phase, at its strongest
MAP_LABEL = "evidence against (below 0) and for the predicted class,\neach map by its own largest value"
OUTLINE = "#56c8ff"
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}  # name: (cut axis, across, upward)
MARKS = {0: ("R", "L"), 1: ("A", "P")}  # what stands at the picture's left and right, radiological view
SCALE_BARS_MM = (100, 50, 20, 10, 5, 2, 1)


@dataclass(frozen=True)
class Panel:
    """One subject of Figure 3.

    Attributes:
        name: the subject.
        early: (side, side, side), RAS+, any units.
        mask: (side, side, side) bool, the tumour; may be empty.
        maps: {model: (g, g, g) decision map, any sign}, g dividing side; drawn in this order.
        voxel_mm: edge of a cube voxel, mm.
        probabilities: {model: P(class 1)}; shown where given.
        label: 0, 1 or None (unknown).
    """

    name: str
    early: np.ndarray
    mask: np.ndarray
    maps: Mapping[str, np.ndarray]
    voxel_mm: float
    probabilities: Mapping[str, float] = field(default_factory=dict)
    label: int | None = None

    def peak_mm(self, model: str) -> float | None:
        """How far from the tumour a model's map is strongest, of any sign, in mm, as in attention.csv."""
        return peak_distance_mm(np.abs(self.maps[model]), self.mask, self.voxel_mm)


def figure3(
    out_path: str | Path,
    panels: Sequence[Panel],
    *,
    outcome: str = "the outcome",
    planes: Sequence[str] = ("axial",),
    dpi: int = 150,
) -> Path:
    """The paper's Figure 3: the early phase with the tumour's outline, then the early phase under each model's map, a
    row a subject and plane.

    The cut goes through the tumour's largest slice (the middle one where the mask is empty). Radiological view: the
    patient's right is at the picture's left, in sagittal pictures the front. The scale bar stands below the picture. A
    map's colour and opacity both grow with its value; its title says how far its peak lies from the tumour in 3D,
    since the peak need not be in the slice shown.

    Args:
        out_path: .png, .pdf or .svg.
        panels: subjects, each with the same models.
        outcome: what class 1 is called in the titles.
        planes: of 'axial', 'coronal', 'sagittal'.

    Raises:
        ValueError: no panel, another plane, or panels of different models.
    """
    models = list(panels[0].maps) if panels else []
    if not models or any(list(panel.maps) != models for panel in panels) or not set(planes) <= set(PLANES):
        raise InputError(
            "expected panels with the same models, and planes of axial, coronal, sagittal. "
            f"Received: {[list(panel.maps) for panel in panels]}, {list(planes)}"
        )
    rows = [(panel, plane) for panel in panels for plane in planes]
    figure = Figure(figsize=(2.7 * (len(models) + 1) + 0.9, 3.1 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(models) + 1, squeeze=False)
    for line, (panel, plane) in zip(axes, rows, strict=True):
        _subject_row(line, panel, plane, outcome)
    on_white = evidence_colours(np.linspace(-1, 1, 256))
    on_white = on_white[:, 3:] * on_white[:, :3] + 1 - on_white[:, 3:]
    scale = ScalarMappable(norm=Normalize(-1, 1), cmap=ListedColormap(on_white))
    bar = figure.colorbar(scale, ax=axes, fraction=0.03, pad=0.01, shrink=0.85)
    bar.set_label(MAP_LABEL, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return save_figure(figure, out_path, dpi)


def _subject_row(line: Sequence[Axes], panel: Panel, plane: str, outcome: str) -> None:
    cut = largest_slice(panel.mask, PLANES[plane][0])
    early, mask = _cut(panel.early, plane, cut), _cut(panel.mask, plane, cut)
    truth = "" if panel.label is None else f", {outcome}: {'yes' if panel.label else 'no'}"
    top = _white(panel)
    _background(line[0], early, mask, top, f"{panel.name}{truth}\ntumour mask, {plane}", plane)
    _scale_bar(line[0], early.shape[1], panel.voxel_mm)
    for axes, (model, cells) in zip(line[1:], panel.maps.items(), strict=True):
        p = panel.probabilities.get(model)
        title = model + ("" if p is None else f": P({outcome}) = {p:.2f}")
        _background(axes, early, mask, top, title + "\n" + _peak_text(panel.peak_mm(model)), plane)
        values = _cut(enlarge(relative(np.asarray(cells)), panel.mask.shape[0]), plane, cut)
        axes.imshow(evidence_colours(values), interpolation="nearest")


def relative(cells: np.ndarray) -> np.ndarray:
    """A map in units of its largest absolute value: the same shape, in [-1, 1]; 0 is 0, and a map of 0 stays so."""
    top = np.abs(cells).max()
    return cells / top if top > 0 else np.zeros_like(cells)


def evidence_colours(values: np.ndarray) -> np.ndarray:
    """Values in [-1, 1] as (..., 4) RGBA to lay over the early phase: warm above 0, cool below, clear at 0."""
    colours = EVIDENCE((np.clip(values, -1, 1) + 1) / 2)
    colours[..., 3] = np.clip(1.6 * np.abs(values), 0, OPAQUE)
    return colours


def _white(panel: Panel) -> float:
    """The early phase that is drawn white: one for all of a subject's planes, and above nearly all of its tumour."""
    tumour = panel.early[panel.mask] if panel.mask.any() else panel.early
    return max(float(np.percentile(panel.early, 99.5)), float(np.percentile(tumour, 95)), 1e-6)


def _peak_text(distance: float | None) -> str:
    """Where the map's peak is: it need not lie in the slice that is shown."""
    if distance is None:
        return "no peak, or no tumour mask"
    return "peak in the tumour" if distance == 0 else f"peak {distance:.0f} mm from the tumour"


def largest_slice(mask: np.ndarray, axis: int) -> int:
    """Index of the slice across ``axis`` with most mask voxels (of equals the middle one); the middle if empty."""
    areas = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    candidates = np.flatnonzero(areas == areas.max())
    return int(candidates[len(candidates) // 2])


def _cut(cube: np.ndarray, plane: str, index: int) -> np.ndarray:
    """A slice as an image: row 0 on top. Left is the patient's right (sagittal: anterior)."""
    return upright(np.take(cube, index, axis=PLANES[plane][0]))


def upright(picture: np.ndarray) -> np.ndarray:
    """(across, upward) as (rows downward, columns) in radiological view.

    The patient's right, and in sagittal slices the front, is at the picture's left.
    """
    return picture[::-1, ::-1].T


def _background(axes: Axes, early: np.ndarray, mask: np.ndarray, top: float, title: str, plane: str) -> None:
    draw_slice(axes, early, mask, top, plane)
    axes.set_title(title, fontsize=8, loc="left")
    axes.set(xticks=[], yticks=[])


def draw_slice(
    axes: Axes,
    early: np.ndarray,
    mask: np.ndarray,
    top: float,
    plane: str,
    *,
    interpolation: str = "nearest",
    fontsize: float = 7,
) -> None:
    """The early phase with the mask's outline and the patient's sides.

    Args:
        early, mask: (rows, columns) as :func:`upright` turns them, any units and bool.
        top: the early phase that is drawn white.
        plane: of PLANES.
    """
    axes.imshow(early, cmap="gray", vmin=0, vmax=top, interpolation=interpolation)
    if mask.any() and not mask.all():
        axes.contour(mask.astype(float), levels=[0.5], colors=[OUTLINE], linewidths=1.2)
    for x, mark in zip((0.03, 0.97), MARKS[PLANES[plane][1]], strict=True):
        axes.text(
            x,
            0.5,
            mark,
            transform=axes.transAxes,
            color="white",
            fontsize=fontsize,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=1.5, foreground="black")],
        )


def _scale_bar(axes: Axes, columns: int, voxel_mm: float) -> None:
    """A bar below the picture, where nothing bright can hide it and it hides nothing."""
    length = next((mm for mm in SCALE_BARS_MM if mm <= columns * voxel_mm / 3), SCALE_BARS_MM[-1])
    below = axes.get_xaxis_transform()  # x in voxels, -0.5 at the picture's left edge; y in shares of its height
    left, right = -0.5, -0.5 + length / voxel_mm
    axes.add_artist(
        Line2D(
            [left, right],
            [-0.04, -0.04],
            transform=below,
            color="black",
            linewidth=2,
            clip_on=False,
            solid_capstyle="butt",
            gid="scale bar",
        )
    )
    axes.text(right + 0.02 * columns, -0.04, f"{length} mm", transform=below, fontsize=7, va="center")


def training_curves(
    out_path: str | Path, histories: Mapping[str, Mapping[str, Sequence[float | None]]], *, dpi: int = 150
) -> Path:
    """Cross-entropy and Dice by epoch, apart, a line a history (a fold, or a model).

    Args:
        out_path: .png, .pdf or .svg.
        histories: {name: columns}. Columns, each a value an epoch: ``ce``, ``dice`` (training, solid lines) and, where
            present, ``ce_held_out``, ``dice_held_out`` (dashed); ``epoch`` (default 1, 2, ...). None and NaN are left
            out: a model without guidance has no Dice.
    """
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    pair = figure.subplots(1, 2)
    for axes, column, label in zip(
        pair, ("ce", "dice"), ("cross-entropy (nats)", "Dice of map and mask (0 to 1)"), strict=True
    ):
        for number, (name, columns) in enumerate(histories.items()):
            for suffix, style in (("", "-"), ("_held_out", "--")):
                values = columns.get(column + suffix)
                if values is not None and len(values):
                    _line(axes, columns.get("epoch"), values, name + suffix.replace("_", " "), style, number)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0, top=1 if column == "dice" else None)
        if axes.lines:
            axes.legend(fontsize=7, frameon=False)
        else:
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
    return save_figure(figure, out_path, dpi)


def _line(
    axes: Axes,
    epochs: Sequence[float | None] | None,
    values: Sequence[float | None],
    name: str,
    style: str,
    number: int,
) -> None:
    y = np.array([np.nan if value is None else value for value in values], np.float64)
    x = np.arange(1, len(y) + 1) if epochs is None else np.array(epochs, np.float64)
    shown = np.isfinite(y)
    if shown.any():
        axes.plot(
            x[shown],
            y[shown],
            style,
            color=CURVES[number % len(CURVES)],
            linewidth=1.3,
            label=name,
            marker="o" if shown.sum() == 1 else None,
        )


def save_figure(figure: Figure, out_path: str | Path, dpi: int = 150) -> Path:
    """Writes a figure on white, whole or not at all, making its folder; the path is returned.

    The same figure gives the same bytes: no date, no names drawn at random.
    """
    FigureCanvasAgg(figure)
    undated = {UNDATED[kind]: None} if (kind := Path(out_path).suffix) in UNDATED else None
    with written_whole(Path(out_path)) as part, rc_context({"svg.hashsalt": "mgkeras"}):
        figure.savefig(part, dpi=dpi, facecolor="white", metadata=undated)
    return Path(out_path)
