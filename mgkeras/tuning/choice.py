"""Trials of a search scored, the best one chosen, their picture: rows of inner held-out subjects in, plain dicts out.

Glossary:
    outer fold: a fold of the run. Its held-out subjects never take part in the search.
    inner fold: a split of an outer fold's training subjects; a trial is trained and scored in each of them.
    attention: share of the ReLU map's mass in cells that the tumour touches, mean over the inner held-out subjects
        that have a mask. A dead map (no positive cell) counts as 0 here: it must not help a trial over the floor.
    score: what the search raises. The pooled inner AUC or, under the floor, attention - floor: below 0 and so below
        every AUC, and the higher, the nearer the floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mgkeras.errors import InputError
from mgkeras.figures.curves import panels_of, plain
from mgkeras.figures.figure3 import CURVES, save_figure
from mgkeras.scores import metrics
from mgkeras.scores.format import cell, text
from mgkeras.scores.summary import Rows, mean_interval, number, with_interval

SHORT = {
    "guidance.lambda_dice": "lambda",
    "training.learning_rate": "learning rate",
    "backbone.dropout": "dropout",
    "guidance.context_dropout": "context dropout",
}
PARTS = (("auc", "AUC (inner)", CURVES[0]), ("attention", "mass in tumour (inner)", CURVES[1]))


def trial_scores(rows: Rows, floor: float | None = None, *, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The scores of one trial.

    Args:
        rows: a row an inner held-out subject: ``inner_fold``, ``label``, ``probability``, ``mass_in_mask`` and
            ``mass_chance`` ('' or None where undefined; chance is undefined exactly where the mask is empty).
        floor: the attention that a trial must reach.
        samples, seed: of the bootstrap over subjects.

    Returns:
        ``auc`` {value, low, high} pooled over the inner folds, ``auc_by_inner_fold`` [value or None, ...],
        ``attention`` {mean, low, high, subjects}, ``chance`` (its mean), ``dead`` (how many maps), ``score``,
        ``reached`` (whether attention reaches the floor; True without one).

    Raises:
        ValueError: one class only, so that there is no AUC.
    """
    labels, p, inner = (np.array([float(row[name]) for row in rows]) for name in ("label", "probability", "inner_fold"))
    labels, p = metrics.checked(labels, p)
    auc = with_interval(metrics.auc_score, labels, p, samples=samples, seed=seed)
    if auc["value"] is None:
        raise InputError(f"expected inner held-out subjects of both classes. Received: {labels.size} of one class")
    masked = [row for row in rows if number(row["mass_chance"]) is not None]
    masses = [number(row["mass_in_mask"]) for row in masked]
    attention = mean_interval([mass or 0.0 for mass in masses], samples=samples, seed=seed)
    reached = floor is None or (attention["mean"] is not None and attention["mean"] >= floor)
    return {
        "auc": auc,
        "auc_by_inner_fold": [metrics.auc_score(labels[inner == fold], p[inner == fold]) for fold in np.unique(inner)],
        "attention": attention,
        "chance": float(np.mean([number(row["mass_chance"]) for row in masked])) if masked else None,
        "dead": sum(mass is None for mass in masses),
        "score": auc["value"] if floor is None or reached else (attention["mean"] or 0.0) - floor,
        "reached": reached,
    }


def choose(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The trial of the highest score among those trained longest; of equals the first; None where all failed.

    Hyperband ends most trials early, and what looks best after an epoch need not be best after all of them.
    """
    scored = [trial for trial in trials if "score" in trial]
    longest = max((trial["epochs"] for trial in scored), default=0)
    return max(
        (trial for trial in scored if trial["epochs"] == longest), key=lambda trial: trial["score"], default=None
    )


def trial_rows(trials: Sequence[Mapping[str, Any]], chosen: Mapping[int, str]) -> list[dict[str, Any]]:
    """The rows of trials.csv.

    Args:
        trials: dicts of ``outer_fold``, ``trial``, ``values`` {dotted name: number}, ``epochs``, ``seconds`` and the
            keys of trial_scores, or ``failed`` (why).
        chosen: {outer fold: trial}.
    """
    inner = max((len(trial.get("auc_by_inner_fold", ())) for trial in trials), default=0)
    rows = []
    for trial in trials:
        auc, attention = trial.get("auc", {}), trial.get("attention", {})
        by_fold = [*trial.get("auc_by_inner_fold", ()), *[None] * inner][:inner]
        rows.append(
            {
                "outer_fold": trial["outer_fold"],
                "trial": trial["trial"],
                **trial["values"],
                "epochs": trial["epochs"],
                "auc": auc.get("value"),
                "auc_low": auc.get("low"),
                "auc_high": auc.get("high"),
                **{f"auc_inner_{place}": value for place, value in enumerate(by_fold)},
                "attention": attention.get("mean"),
                "attention_low": attention.get("low"),
                "attention_high": attention.get("high"),
                "attention_chance": trial.get("chance"),
                "dead_maps": trial.get("dead"),
                "score": trial.get("score"),
                "reached_floor": trial.get("reached"),
                "chosen": chosen.get(trial["outer_fold"]) == trial["trial"],
                "seconds": trial.get("seconds"),
                "failed": trial.get("failed"),
            }
        )
    return rows


def choice_table(chosen: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None = None) -> list[dict[str, str]]:
    """A row an outer fold: what was chosen, how it did inside and, where the fold was trained, outside the search.

    Args:
        chosen: a trial an outer fold, as for trial_rows.
        summary: the run's summary.json.
    """
    outer = {fold["fold"]: fold["held_out"]["auc"] for fold in summary["per_fold"]} if summary else {}
    return [
        {
            "outer fold": str(trial["outer_fold"] + 1),
            **{SHORT.get(name, name): f"{value:.4g}" for name, value in trial["values"].items()},
            "inner AUC (95 %)": cell(trial["auc"]),
            "inner mass in tumour (95 %)": cell(trial["attention"]),
            "floor": "reached" if trial["reached"] else "not reached",
            "outer AUC": text(outer.get(trial["outer_fold"])),
        }
        for trial in chosen
    ]


def value_figure(
    out_path: Path,
    name: str,
    bounds: tuple[float, float, bool],
    trials: Sequence[Mapping[str, Any]],
    chosen: Mapping[int, str],
    floor: float | None = None,
) -> Path:
    """AUC (above) and attention (below) of every trial against one searched value, an outer fold a column.

    Bars are 95 % bootstrap intervals over the inner held-out subjects; the chosen trial is the black star.

    Args:
        out_path: .png, .pdf or .svg.
        name: dotted, of the value.
        bounds: its lowest and highest value, and whether the axis is logarithmic.
        trials, chosen: as for trial_rows.
        floor: of attention, drawn where there is one.
    """
    folds = sorted({trial["outer_fold"] for trial in trials})
    figure, panels = panels_of(len(folds), (1, 1))
    longest = max((trial["epochs"] for trial in trials if "score" in trial), default=0)
    for fold, panel in zip(folds, panels, strict=True):
        own = [trial for trial in trials if trial["outer_fold"] == fold]
        taken = next((trial["values"][name] for trial in own if trial["trial"] == chosen.get(fold)), None)
        title = f"outer fold {fold + 1}" + ("" if taken is None else f": {SHORT.get(name, name)} {taken:.4g}")
        for axes, (key, what, colour), above in zip(panel, PARTS, (title, ""), strict=True):
            for trial in own:
                _point(axes, trial, name, key, colour, trial["trial"] == chosen.get(fold), longest)
            _frame(axes, bounds, what, above)
        panel[1].set_xlabel(SHORT.get(name, name), fontsize=8)
        _levels(panel[1], own, floor)
    figure.legend(handles=_marks(trials, longest), fontsize=7, frameon=False, ncols=4, loc="outside lower center")
    return save_figure(figure, out_path)


def _point(axes: Axes, trial: Mapping[str, Any], name: str, key: str, colour: str, chosen: bool, longest: int) -> None:
    x = trial["values"][name]
    if "score" not in trial:
        axes.plot([x], [0.02], marker="x", color="0.5", markersize=5, transform=axes.get_xaxis_transform())
        return
    values = trial[key]
    value = values.get("value", values.get("mean"))
    if value is None:
        return
    early = trial["epochs"] < longest
    colour = "black" if chosen else "0.6" if early else colour
    if values["low"] is not None:
        axes.vlines(x, values["low"], values["high"], color=colour, linewidth=2 if chosen else 1, alpha=0.5)
    axes.plot(
        [x],
        [value],
        marker="*" if chosen else "o",
        markersize=11 if chosen else 3 if early else 5,
        zorder=3,
        color=colour,
        markerfacecolor=colour if trial["reached"] else "white",
        clip_on=False,
    )
    if chosen:
        axes.axvline(x, color="black", linewidth=0.8, linestyle=":")


def _frame(axes: Axes, bounds: tuple[float, float, bool], what: str, title: str) -> None:
    low, high, log = bounds
    if log:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.04, high * (high / low) ** 0.04)
    else:
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axes.set_ylim(-0.02, 1.02)
    plain(axes, upward=what, title=title)


def _levels(axes: Axes, trials: Sequence[Mapping[str, Any]], floor: float | None) -> None:
    chances = [trial["chance"] for trial in trials if trial.get("chance") is not None]
    across = axes.get_yaxis_transform()
    for level, label in ((floor, "floor"), (float(np.mean(chances)) if chances else None, "chance")):
        if level is not None:
            axes.axhline(level, color="0.45", linewidth=1, linestyle="--")
            axes.text(0.99, level, label, transform=across, fontsize=6, color="0.35", ha="right", va="bottom")


def _marks(trials: Sequence[Mapping[str, Any]], longest: int) -> list[Line2D]:
    """What the marks mean: only what occurs."""
    scored = [trial for trial in trials if "score" in trial]
    under, early = any(not trial["reached"] for trial in scored), any(trial["epochs"] < longest for trial in scored)
    marks: tuple[tuple[bool, str, dict[str, Any]], ...] = (
        (True, "chosen", {"marker": "*", "color": "black", "markersize": 9}),
        (under, "under the floor", {"marker": "o", "color": "0.3", "markerfacecolor": "white", "markersize": 5}),
        (early, "ended early", {"marker": "o", "color": "0.6", "markersize": 3}),
        (len(scored) < len(trials), "failed", {"marker": "x", "color": "0.5", "markersize": 5}),
    )
    return [Line2D([], [], linestyle="", label=label, **look) for occurs, label, look in marks if occurs]
