"""Pictures of an evaluation: ROC, calibration, decision curve, attention. matplotlib's objects, never pyplot.

Colours are Okabe and Ito's; what a colour tells, a line's style or a mark's form tells too.

Glossary:
    net benefit: true positives less false positives weighed by the odds of the threshold, per subject (Vickers 2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats
from sklearn.metrics import roc_curve

from mgkeras.figures.figure3 import CURVES, save_figure
from mgkeras.scores import metrics
from mgkeras.scores.format import cell
from mgkeras.scores.held_out import HeldOut
from mgkeras.scores.patients import resamples
from mgkeras.scores.summary import number

GRID = np.linspace(0, 1, 101)  # false positive rates of the band
THRESHOLDS = np.linspace(0.01, 0.95, 95)  # of the decision curve
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MARKS = {True: "o", False: "X"}  # right, wrong
PANELS_A_ROW = 4
UNIT = (-0.01, 1.01)  # limits of an axis from 0 to 1


def roc_band(
    labels: np.ndarray, p: np.ndarray, *, samples: int = 500, seed: int = 0, patients: np.ndarray | None = None
) -> np.ndarray | None:
    """Pointwise 95 % band of sensitivity at each false positive rate of GRID: (2, 101), bootstrap over patients.

    None with one class only. A draw without both classes is drawn again. ``patients`` is that of patients.clusters.
    """
    labels, p = metrics.checked(labels, p)
    if not 0 < labels.sum() < labels.size:
        return None
    found = []
    for draw in (draw for draws, _ in resamples(labels, samples, seed, patients) for draw in draws):
        fpr, tpr, _ = roc_curve(labels[draw], p[draw], drop_intermediate=False)
        found.append(np.interp(GRID, fpr, tpr))  # on a vertical step its top
    return np.quantile(found, (0.025, 0.975), axis=0)


def calibration_bins(labels: np.ndarray, p: np.ndarray) -> list[dict[str, float]]:
    """Subjects in 2 to 10 bins of about equal size by probability; equal probabilities share a bin.

    Returns:
        [{predicted (mean), observed (share of class 1), low, high (Wilson's 95 % interval), subjects}].
    """
    labels, p = metrics.checked(labels, p)
    bins = int(np.clip(labels.size // 15, 2, 10))
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, p, side="right")
    found = []
    for number_ in np.unique(place):
        inside = place == number_
        n, positives = int(inside.sum()), int(labels[inside].sum())
        wilson = stats.binomtest(positives, n).proportion_ci(method="wilson")
        found.append(
            {
                "predicted": float(p[inside].mean()),
                "observed": positives / n,
                "low": float(wilson.low),
                "high": float(wilson.high),
                "subjects": n,
            }
        )
    return found


def net_benefit(labels: np.ndarray, p: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Net benefit of treating where ``p >= threshold``: (t,) for thresholds (t,) in (0, 1), per subject."""
    labels, p = metrics.checked(labels, p)
    called = p[None, :] >= thresholds[:, None]  # (t, n)
    true, false = called[:, labels == 1].sum(axis=1), called[:, labels == 0].sum(axis=1)
    return (true - false * thresholds / (1 - thresholds)) / labels.size


def roc_figure(
    out_path: str | Path, models: Sequence[HeldOut], scored: Mapping[str, Any], *, samples: int = 500, seed: int = 0
) -> Path:
    """A panel a model: its pooled out-of-fold ROC with a bootstrap band, the other models in grey.

    Args:
        models: at least one.
        scored: {model: its entry of evaluation.json}, for the AUC in the title.
    """
    figure, panels = panels_of(len(models))
    for place, ((axes,), model) in enumerate(zip(panels, models, strict=True)):
        band = roc_band(model.labels, model.probabilities, samples=samples, seed=seed, patients=model.patients)
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        if band is None:
            axes.text(0.5, 0.5, "one class only:\nno ROC curve", ha="center", va="center", fontsize=8)
        else:
            colour = CURVES[place % len(CURVES)]
            axes.fill_between(GRID, *band, color=colour, alpha=0.25, linewidth=0)
            for other in models:
                axes.plot(*roc_curve(other.labels, other.probabilities)[:2], color="0.55", linewidth=0.7)
            axes.plot(*roc_curve(model.labels, model.probabilities)[:2], color=colour, linewidth=1.8)
        axes.set(xlim=UNIT, ylim=UNIT)
        title = f"{model.name}\nAUC {cell(scored[model.name]['pooled']['auc'])}"
        plain(axes, "1 - specificity", "sensitivity", title=title)
    return save_figure(figure, out_path)


def calibration_figure(out_path: str | Path, models: Sequence[HeldOut], scored: Mapping[str, Any]) -> Path:
    """A panel a model: observed share against predicted probability by bins, with counts; below, the distribution."""
    figure, panels = panels_of(len(models), heights=(3, 1))
    for place, model in enumerate(models):
        upper, lower = panels[place]
        bins = calibration_bins(model.labels, model.probabilities)
        x, y, low, high = (np.array([point[key] for point in bins]) for key in ("predicted", "observed", "low", "high"))
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        upper.errorbar(
            x,
            y,
            yerr=np.maximum([y - low, high - y], 0),
            fmt="o-",
            color=CURVES[place % len(CURVES)],
            markersize=4,
            linewidth=1,
            capsize=2,
        )
        told = -1.0
        for point in bins:
            if point["predicted"] - told > 0.07:  # nearer ones would be printed over each other
                told = point["predicted"]
                upper.annotate(
                    f"{point['subjects']}",
                    (told, point["observed"]),
                    xytext=(4, 3),
                    textcoords="offset points",
                    fontsize=7,
                )
        pooled = scored[model.name]["pooled"]
        title = (
            f"{model.name}\nslope {cell(pooled['calibration_slope'])}\n"
            f"intercept {cell(pooled['calibration_intercept'])}"
        )
        upper.set(xlim=UNIT, ylim=UNIT)
        plain(upper, upward="observed share (95 % Wilson)", title=title)
        _histogram(lower, model)
    return save_figure(figure, out_path)


def _histogram(axes: Axes, model: HeldOut) -> None:
    edges = np.linspace(0, 1, 21).tolist()
    parts = [model.probabilities[model.labels == label] for label in (0, 1)]
    axes.hist(
        parts,
        edges,
        stacked=True,
        color=(CURVES[5], CURVES[1]),
        edgecolor="white",
        linewidth=0.4,
        label=("class 0", "class 1"),
    )
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlim(UNIT)
    axes.legend(fontsize=6.5, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.95), borderpad=0)
    plain(axes, "predicted probability of class 1", "subjects")


def decision_figure(out_path: str | Path, models: Sequence[HeldOut]) -> Path:
    """Net benefit by threshold probability: every model, treating everyone, treating nobody."""
    figure = Figure(figsize=(7.4, 4), layout="constrained")
    axes = figure.subplots()
    labels = models[0].labels
    share = float(labels.mean())
    axes.axhline(0, color="black", linewidth=1, label="treat nobody")
    axes.plot(
        THRESHOLDS,
        net_benefit(labels, np.ones(labels.shape), THRESHOLDS),
        color="0.55",
        linewidth=1.5,
        label="treat everyone",
    )
    for place, (model, style) in enumerate(zip(models, cycle(STYLES), strict=False)):
        benefit = net_benefit(model.labels, model.probabilities, THRESHOLDS)
        axes.plot(
            THRESHOLDS, benefit, linestyle=style, color=CURVES[place % len(CURVES)], linewidth=1.5, label=model.name
        )
    axes.set_ylim(-0.35 * max(share, 0.1), 1.1 * max(share, 0.1))
    axes.set_xlim(0, 1)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    across = "threshold probability at which one would treat"
    plain(axes, across, "net benefit (true positives per subject)", fontsize=9)
    return save_figure(figure, out_path)


def attention_figure(
    out_path: str | Path, networks: Sequence[HeldOut], attention: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Path:
    """Each subject's mass in the tumour against chance, and its peak's distance, by network and class.

    A disc is a subject classified rightly at 0.5, a cross a wrong one; a bar is the median, the grey line the median
    of chance for the same subjects. Subjects without a defined value are left out and counted under the axis.
    """
    groups = [(network, label) for network in networks for label in (0, 1)]
    width, stacked = max(2.4 + 1.1 * len(groups), 5.5), len(groups) > 4  # else the page is wider than a screen
    figure = Figure(figsize=(width, 7.5) if stacked else (1.5 * width, 4), layout="constrained")
    pair = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
    for axes, key, what in zip(
        pair,
        ("mass_in_mask", "peak_distance_mm"),
        ("share of the map's mass in the tumour (0 to 1)", "peak to tumour (mm)"),
        strict=True,
    ):
        ticks = [
            _strip(axes, at, network, label, attention.get(network.name, ()), key)
            for at, (network, label) in enumerate(groups)
        ]
        axes.set_xticks(range(len(groups)), ticks, fontsize=7)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set_ylim(bottom=-0.02 if key == "mass_in_mask" else None, top=1.02 if key == "mass_in_mask" else None)
        plain(axes, upward=what, fontsize=9)
    if not any(attention.get(network.name) for network in networks):
        pair[0].text(0.5, 0.5, "no attention scores in these runs", transform=pair[0].transAxes, ha="center")
    else:
        _attention_legend(pair[0])
    return save_figure(figure, out_path)


def _strip(axes: Axes, at: int, network: HeldOut, label: int, rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Draws one column of subjects; returns its tick label."""
    places = {name: index for index, name in enumerate(network.subjects) if network.labels[index] == label}
    own = [row for row in rows if row["subject"] in places]
    shown = [(places[row["subject"]], number(row.get(key)), number(row.get("mass_chance"))) for row in own]
    shown = [(index, value, chance) for index, value, chance in shown if value is not None]
    if shown:
        values = np.array([value for _, value, _ in shown])
        right = np.array([(network.probabilities[index] >= metrics.THRESHOLD) == label for index, *_ in shown])
        x = at + np.random.default_rng(at).uniform(-0.25, 0.25, len(shown))  # apart, to be told apart
        for is_right, mark in MARKS.items():
            axes.scatter(
                x[right == is_right],
                values[right == is_right],
                s=16,
                marker=mark,
                linewidths=0,
                color=CURVES[1 if label else 0],
                alpha=0.75,
            )
        axes.hlines(np.median(values), at - 0.35, at + 0.35, color="black", linewidth=2)
        chances = [chance for *_, chance in shown if chance is not None]
        if key == "mass_in_mask" and chances:
            axes.hlines(np.median(chances), at - 0.4, at + 0.4, color="0.45", linewidth=1.5, linestyle="--")
    missing = len(own) - len(shown)
    return f"{network.name}\nclass {label}\nn = {len(shown)}" + (f"\n{missing} undefined" if missing else "")


def _attention_legend(axes: Axes) -> None:
    axes.scatter([], [], s=16, marker=MARKS[True], color="0.3", label="right at 0.5")
    axes.scatter([], [], s=16, marker=MARKS[False], color="0.3", linewidths=0, label="wrong at 0.5")
    axes.plot([], [], color="black", linewidth=2, label="median")
    axes.plot([], [], color="0.45", linewidth=1.5, linestyle="--", label="chance (median)")
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))


def panels_of(count: int, heights: Sequence[int] = (1,)) -> tuple[Figure, list[np.ndarray]]:
    """A figure and ``count`` panels in rows of PANELS_A_ROW, each of as many axes, one under another, as heights."""
    columns, parts = min(max(count, 2), PANELS_A_ROW), len(heights)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.9 * columns, (3.2 if parts == 1 else 4.4) * rows), layout="constrained")
    grid = figure.subplots(rows * parts, columns, squeeze=False, height_ratios=list(heights) * rows)
    panels = [grid[row * parts : (row + 1) * parts, column] for row in range(rows) for column in range(columns)]
    for axes in (axes for panel in panels[count:] for axes in panel):
        axes.set_visible(False)
    return figure, panels[:count]


def plain(axes: Axes, across: str = "", upward: str = "", *, title: str = "", fontsize: float = 8) -> None:
    """Labels, a small title at the left, small ticks, a light grid, no frame above and at the right."""
    axes.set_title(title, fontsize=8, loc="left")
    axes.set_xlabel(across, fontsize=fontsize)
    axes.set_ylabel(upward, fontsize=fontsize)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
