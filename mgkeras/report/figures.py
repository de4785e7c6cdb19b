"""The report's pictures as data URIs, so that the page needs no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

from mgkeras.evaluation.evaluate import Evaluated
from mgkeras.figures import curves
from mgkeras.figures.figure3 import (
    Panel,
    draw_slice,
    evidence_colours,
    figure3,
    largest_slice,
    relative,
    save_figure,
    training_curves,
    upright,
)
from mgkeras.probes import figures as probe_figures
from mgkeras.report.facts import Facts
from mgkeras.scores.attention import enlarge

SVG_WIDTH = re.compile(r'<svg[^>]* width="([0-9.]+)pt"')
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
INCHES, DPI = 2.4, 150  # of a picture at the page's top: 360 pixels, sharp on a fine screen at half of that
WORDS = {
    "roc": ("ROC curves", "Sensitivity against 1 - specificity of each model with its 95 % band, the others in grey."),
    "calibration": (
        "Calibration",
        "Observed share against predicted probability by bins, and the distribution of the "
        "probabilities below, for each model.",
    ),
    "decision": ("Decision curve", "Net benefit by threshold of each model, beside treating everyone and nobody."),
    "attention": (
        "Where the maps look",
        "Each subject's share of the map's evidence in the tumour against chance, and "
        "the distance of the map's peak, by model and class.",
    ),
    "probes": (
        "What the decisions rest on",
        "AUC by dilation of the mask with the tumour or the rest blurred; the "
        "maps under randomised layers; on the phantom the traps removed and added.",
    ),
    "training": ("Training", "Cross-entropy and Dice by epoch, the folds' mean, a line a model."),
    "figure3": (
        "Figure 3",
        "the early phase with the tumour's outline, then under each model's decision map (warm: for the "
        "predicted class, cool: against; each map by its own largest value): the best, the median and the "
        "worst map of the last model.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Attributes:
        uri: its bytes. title, alt: what it shows.
        drawing: whether it is lines on white, which a dark page may turn, and no exam.
        inches: its width on paper; on a narrower page it is leafed sideways rather than shrunk beyond reading.
    """

    uri: str
    title: str
    alt: str
    drawing: bool
    inches: float


def pictures(found: Evaluated, facts: Facts) -> dict[str, Picture]:
    """{key of WORDS: picture} of what can be drawn; lines as SVG, exams as PNG."""
    histories = {run.name: run.histories for run in facts.runs if run.histories}
    with TemporaryDirectory() as folder:
        at = {name: Path(folder) / f"{name}{'.png' if name == 'figure3' else '.svg'}" for name in WORDS}
        draw_evaluation(found, at)
        if histories:
            training_curves(at["training"], histories)
        if facts.panels:
            figure3(at["figure3"], facts.panels, outcome=str(found.results["outcome"]))
        return {
            name: Picture(data_uri(path), *WORDS[name], path.suffix == ".svg", _inches(path))
            for name, path in at.items()
            if path.exists()
        }


def draw_evaluation(found: Evaluated, at: Mapping[str, Path]) -> None:
    """Draws the evaluation's curves and probes to the paths of 'roc', 'calibration', 'decision', 'attention', 'probes'.

    A picture of probes is there only where a network was probed.
    """
    scored = {model["name"]: model for model in found.results["models"]}
    ranking = [model for model in found.models if model.name != "majority class"]  # a constant has no curve
    networks = [model for model in found.models if model.kind == "network"]
    curves.roc_figure(at["roc"], ranking, scored, seed=found.results["seed"])
    curves.calibration_figure(at["calibration"], ranking, scored)
    curves.decision_figure(at["decision"], ranking)
    curves.attention_figure(at["attention"], networks, found.attention)
    probe_figures.probe_figure(at["probes"], found.results)


def _inches(path: Path) -> float:
    """The width of a picture of matplotlib's: of an SVG as it says, of a PNG by figure3's resolution."""
    if path.suffix == ".svg":
        width = SVG_WIDTH.search(path.read_text(encoding="utf-8")[:2000])
        assert width is not None
        return float(width[1]) / 72
    return imread(path).shape[1] / DPI


def data_uri(path: Path) -> str:
    """A file as a data URI."""
    return f"data:{TYPES[path.suffix]};base64," + base64.b64encode(path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Cut:
    """One square of the strip at the page's top: the early phase with the mask, or the early phase under a model's
    map."""

    uri: str
    title: str
    text: str
    alt: str


def strip(panel: Panel, outcome: str) -> list[Cut]:
    """The paper's Figure 3 of one subject as squares: the tumour's mask, then each model's map, axial.

    The cut goes through the tumour's largest slice; radiological view, the patient's right at the left.
    """
    cut = largest_slice(panel.mask, 2)
    truth = "" if panel.label is None else f"{outcome}: {'yes' if panel.label else 'no'}"
    found = [
        Cut(
            _square(panel, cut),
            "Tumour mask",
            f"{panel.name}, {truth}",
            f"Axial early phase of {panel.name} with the tumour's outline.",
        )
    ]
    for model, cells in panel.maps.items():
        far, p = panel.peak_mm(model), panel.probabilities.get(model)
        where = "no peak" if far is None else "peak in the tumour" if far == 0 else f"peak {far:.0f} mm off"
        found.append(
            Cut(
                _square(panel, cut, np.asarray(cells)),
                model,
                where + ("" if p is None else f", P\u00a0=\u00a0{p:.2f}"),
                f"The same slice under the map of {model}: {where}.",
            )
        )
    return found


def _square(panel: Panel, cut: int, cells: np.ndarray | None = None) -> str:
    """One square as a PNG data URI."""
    figure = Figure(figsize=(INCHES, INCHES))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    early, mask = (upright(cube[:, :, cut]) for cube in (panel.early, panel.mask))
    white = max(float(np.percentile(early, 99.5)), 1e-6)
    draw_slice(axes, early, mask, white, "axial", interpolation="bilinear", fontsize=9)
    if cells is not None:
        values = upright(enlarge(relative(cells), panel.mask.shape[0])[:, :, cut])
        axes.imshow(evidence_colours(values), interpolation="nearest")  # as figures.figure3; colours do not interpolate
    with TemporaryDirectory() as folder:
        return data_uri(save_figure(figure, Path(folder) / "square.png", DPI))


def median_panel(facts: Facts) -> Panel | None:
    """The panel at the page's top: the median of those that Figure 3 shows, which are ordered by the map's mass."""
    return facts.panels[len(facts.panels) // 2] if facts.panels else None
