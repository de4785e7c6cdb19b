"""The probes as one picture: what each network's decision rests on, and whether its map shows what it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mgkeras.figures.curves import panels_of, plain
from mgkeras.figures.figure3 import CURVES, save_figure

PARTS = {"auc_outside_blurred": ("tumour only", "-", "o"), "auc_inside_blurred": ("outside only", "--", "s")}
TRAP = {"auc_as_is": "as it is", "auc_removed": "removed", "auc_added": "added"}
TRANSPLANT = {"owner": "owner", "breast": "breast", "soft_owner": "owner,\nsoft", "soft_breast": "breast,\nsoft"}


def probe_figure(out_path: str | Path, results: Mapping[str, Any]) -> Path | None:
    """AUC by dilation of the mask, a panel a network; the maps under randomised layers; on a phantom each trap.

    Where they were asked: whose label the model gives a transplanted tumour, and where the log-odds differ.

    Args:
        out_path: .png, .pdf or .svg.
        results: the content of evaluation.json.

    Returns:
        The path; None where no network was probed.
    """
    models = [model for model in results["models"] if model.get("probes")]
    if not models:
        return None
    traps = list(dict.fromkeys(trap["trap"] for model in models for trap in model["probes"]["traps"]))
    rest = [
        (draw, asked)
        for what, draw in (("transplant", _transplant), ("ledger", _ledger))
        if (asked := [model for model in models if model["probes"].get(what)])
    ]
    count = len(models) + 1 + len(traps) + len(rest)
    figure, found = panels_of(count)
    panels = [axes for (axes,) in found]
    for place, (axes, model) in enumerate(zip(panels, models, strict=False)):
        _causal(axes, model, CURVES[place % len(CURVES)])
    _randomised(panels[len(models)], models)
    for axes, trap in zip(panels[len(models) + 1 :], traps, strict=False):
        _trap(axes, trap, models)
    for axes, (draw, asked) in zip(panels[count - len(rest) :], rest, strict=True):
        draw(axes, asked, models)
    return save_figure(figure, out_path)


def _causal(axes: Axes, model: Mapping[str, Any], colour: str) -> None:
    rows = model["probes"]["causal"]
    x = np.array([row["dilation_mm"] for row in rows])
    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    whole = model.get("causal", {}).get("auc_whole", model["pooled"]["auc"])["value"]
    if whole is not None:
        axes.axhline(whole, color="0.35", linewidth=1, label="whole exam")
    for key, (name, style, mark) in PARTS.items():
        _with_bars(axes, x, [row[key] for row in rows], style + mark, colour, name)
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7, frameon=False, loc="lower left")
    title = f"{model['name']}\nwhat the decision can be read from"
    plain(axes, "dilation of the mask (mm)", "AUC (95 % interval)", title=title)


def _with_bars(
    axes: Axes, x: np.ndarray, values: Sequence[Mapping[str, Any]], style: str, colour: str, name: str
) -> None:
    """Points with their intervals; undefined ones are left out, and undefined intervals have no bar."""
    known = [
        (at, score) for at, score in zip(x, values, strict=True) if score.get("value", score.get("mean")) is not None
    ]
    if not known:
        return
    at, scores = zip(*known, strict=True)
    y = np.array([score.get("value", score.get("mean")) for score in scores])
    low, high = (
        np.array([y[i] if score[edge] is None else score[edge] for i, score in enumerate(scores)])
        for edge in ("low", "high")
    )
    axes.errorbar(
        at,
        y,
        yerr=np.maximum([y - low, high - y], 0),
        fmt=style,
        color=colour,
        markersize=4,
        linewidth=1.2,
        capsize=2,
        label=name,
    )


def _randomised(axes: Axes, models: Sequence[Mapping[str, Any]]) -> None:
    layers = [row["layer"] for row in models[0]["probes"]["randomised"]]
    for place, model in enumerate(models):
        rows = {row["layer"]: row["rank_correlation"] for row in model["probes"]["randomised"]}
        shift = 0.12 * (place - (len(models) - 1) / 2)  # so that the bars of several networks can be told apart
        values = [rows.get(layer, {"mean": None}) for layer in layers]
        _with_bars(axes, np.arange(len(layers)) + shift, values, "-o", CURVES[place % len(CURVES)], model["name"])
    axes.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6)
    axes.set_ylim(-1, 1.02)
    axes.legend(fontsize=7, frameon=False)
    title = "map under fresh weights\nfrom the output down to"
    plain(axes, upward="rank correlation with the map", title=title)
    axes.tick_params(axis="x", labelsize=6)


def _trap(axes: Axes, trap: str, models: Sequence[Mapping[str, Any]]) -> None:
    found = {model["name"]: scores for model in models for scores in model["probes"]["traps"] if scores["trap"] == trap}
    _aucs(axes, f"AUC when the trap {trap}\nis removed from, or added to, everyone", TRAP, found, models)


def _transplant(axes: Axes, asked: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> None:
    found = {model["name"]: model["probes"]["transplant"] for model in asked}
    _aucs(axes, "each tumour in another breast:\nwhose label does the model give", TRANSPLANT, found, models)


def _aucs(
    axes: Axes,
    title: str,
    keys: Mapping[str, str],
    found: Mapping[str, Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
) -> None:
    """AUCs side by side: of each network in found those of keys {key: name below the axis}."""
    colours = _colours(models)
    for place, (name, scores) in enumerate(found.items()):
        shift = 0.1 * (place - (len(found) - 1) / 2)
        _with_bars(axes, np.arange(len(keys)) + shift, [scores[key] for key in keys], "o", colours[name], name)
    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(keys)), keys.values())
    axes.set_xlim(-0.5, len(keys) - 0.5)
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7, frameon=False, loc="lower left")
    plain(axes, upward="AUC (95 % interval)", title=title)


def _colours(models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {model["name"]: CURVES[place % len(CURVES)] for place, model in enumerate(models)}


def _ledger(axes: Axes, asked: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> None:
    """Shares of the variance of the log-odds by part; a dash is the part's mean share of the map's cells."""
    colours = _colours(models)
    names = [part["part"] for part in asked[0]["probes"]["ledger"]["parts"]]
    for place, model in enumerate(asked):
        x = np.arange(len(names)) + 0.1 * (place - (len(asked) - 1) / 2)
        parts = model["probes"]["ledger"]["parts"]
        _with_bars(axes, x, [part["variance"] for part in parts], "o", colours[model["name"]], model["name"])
        axes.plot(
            x,
            [part["cells"]["mean"] for part in parts],
            "_",
            color="0.4",
            markersize=7,
            label="share of cells" if not place else None,
        )
    axes.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.legend(fontsize=7, frameon=False)
    title = "where the log-odds differ\nbetween patients"
    plain(axes, upward="share of the variance (95 % interval)", title=title)
