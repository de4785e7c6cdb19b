"""Probes and robustness of evaluation.json as tables: what a decision rests on, in rows for people and for a CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mgkeras.probes.rest_tables import rest_values
from mgkeras.scores.format import cell, text

PROBE_NOTE = (
    "Tumour only and outside only: everything outside, or inside, the mask dilated by so many mm is blurred; AUCs "
    "count pairs of subjects within folds, because blurring moves each fold's model by an offset of its own; the "
    "change is the mean absolute change of a subject's probability. Occlusion: rank correlation (Spearman) of the "
    "decision map with the fall of the evidence when a block is blurred, and how much of that fall lies in blocks "
    "that the tumour touches. Randomised: rank correlation of the map with itself once the layers from the output "
    "down to this one have fresh weights; a map that shows what was learned loses it. Traps (phantom only): every "
    "subject scanned again with the trap, or without it (site: all by the one scanner, or by the other)."
)
ROBUSTNESS_NOTE = (
    "The reference mask is changed and the same maps are scored again; the models are not trained again. A mask-only "
    "model's box follows its mask. Seeds: the same model trained again, folds drawn anew."
)
Row = dict[str, Any]


def causal_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a network and dilation: AUC on the tumour only and on everything but it, and how far probabilities move."""
    return [
        {
            "Model": model["name"],
            "dilation (mm)": text(row["dilation_mm"], 1),
            "kept (ml)": text((row.get("kept_ml") or {}).get("mean"), 1),
            "AUC tumour only (95 %)": cell(row["auc_outside_blurred"]),
            "AUC outside only (95 %)": cell(row["auc_inside_blurred"]),
            "change, tumour only": cell(row["change_outside_blurred"]),
            "change, outside only": cell(row["change_inside_blurred"]),
        }
        for model in _probed(results)
        for row in model["probes"]["causal"]
    ]


def occlusion_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a network: whether its map agrees with what happens when parts of the volume are blurred."""
    return [
        {
            "Model": model["name"],
            "subjects": f"{occlusion['subjects']}",
            "blocks a side": f"{occlusion['grid']}",
            "rank correlation with the CAM (95 %)": cell(occlusion["rank_correlation"]),
            "share of the fall in the tumour (95 %)": cell(occlusion["mass_in_mask"]),
            "chance": text(occlusion["mass_chance"]["mean"], 2),
        }
        for model in _probed(results)
        for occlusion in [model["probes"]["occlusion"]]
    ]


def randomised_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a layer, from the output down: each network's rank correlation of its map before and after."""
    layers: dict[str, dict[str, str]] = {
        row["layer"]: {} for model in _probed(results) for row in model["probes"]["randomised"]
    }
    for model in _probed(results):
        for row in model["probes"]["randomised"]:
            layers[row["layer"]][model["name"]] = cell(row["rank_correlation"])
    return [{"randomised down to": layer, **cells} for layer, cells in layers.items()]


def trap_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a network and trap of the phantom: AUC with the trap as it is, removed from all, added to all."""
    return [
        {
            "Model": model["name"],
            "trap": trap["trap"],
            "with it": f"{trap['with_trap']} of {trap['subjects']}",
            "AUC as it is": cell(trap["auc_as_is"]),
            "AUC removed": cell(trap["auc_removed"]),
            "AUC added": cell(trap["auc_added"]),
            "change when removed": cell(trap["change_removed"]),
            "change when added": cell(trap["change_added"]),
        }
        for model in _probed(results)
        for trap in model["probes"]["traps"]
    ]


def mask_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a network and change of the mask: how the attention scores move."""
    return [
        {
            "Model": model["name"],
            "mask": change["change"] + ("" if change["mm"] == 0 else f" (used: {change['mm']:.1f})"),
            "Dice with the mask": cell(change["dice_with_mask"]),
            "mass in tumour (95 %)": cell(change["mass_in_mask"]),
            "chance": text(change["mass_chance"]["mean"]),
            "mass moved (95 %)": cell(change["mass_moved"]),
            "peak within 10 mm": cell(change["peak_within_10mm"]),
            "soft Dice": cell(change["soft_dice"]),
            "no mask left": f"{change['empty']}",
        }
        for model in results["models"]
        for change in (model.get("robustness") or {}).get("mask") or []
    ]


def box_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a change of the box that a mask-only model sees: its AUC, and how far probabilities move."""
    return [
        {
            "Model": model["name"],
            "box": change["change"],
            "AUC (95 %)": cell(change["auc"]),
            "change of P (95 %)": cell(change["change_of_p"]),
        }
        for model in _probed(results)
        for change in model["probes"]["box"]
    ]


def repeats_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a network that was trained with several seeds: how far scores, decisions and maps move."""
    return [
        {
            "Model": model["name"],
            "seeds": ", ".join(map(str, repeats["seeds"])),
            "AUC": ", ".join(text(auc) for auc in repeats["auc"]),
            "mean (SD)": f"{text(repeats['mean'])} ({text(repeats['sd'])})",
            "SD of a subject's P": cell(repeats["probability_sd"]),
            "mass in tumour": ", ".join(text(mass) for mass in repeats["mass_in_mask"]),
            "decisions that differ": text(repeats["flipped"]),
            "rank correlation of maps": cell(repeats["map_correlation"]),
        }
        for model in results["models"]
        if (repeats := (model.get("robustness") or {}).get("repeats"))
    ]


def probe_rows(model: Mapping[str, Any]) -> Iterator[Row]:
    """The probes and robustness of one network as rows of evaluation.csv; group: which layer, change or trap."""
    for group, part, values in _values(model):
        for name, value in values.items():
            if isinstance(value, Mapping) and ("value" in value or "mean" in value):
                yield {
                    "part": part,
                    "group": group,
                    "score": name,
                    "value": value.get("value", value.get("mean")),
                    "low": value.get("low"),
                    "high": value.get("high"),
                    "sd": value.get("sd"),
                    "count": value.get("subjects", value.get("defined")),
                }


def _values(model: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(group, part, scores) of everything that was probed."""
    if found := model.get("probes"):
        yield from ((f"{row['dilation_mm']} mm", "causal", row) for row in found["causal"])
        yield "all", "occlusion", found["occlusion"]
        yield from ((row["layer"], "randomised", row) for row in found["randomised"])
        yield "all", "random network", found["random_network"]
        yield "all", "random network", found["random_network"]["attention"]
        yield from ((row["change"], "changed box", row) for row in found["box"])
        yield from ((row["trap"], "trap", row) for row in found["traps"])
        yield from rest_values(found)
    robustness = model.get("robustness") or {}
    yield from ((row["change"], "changed mask", row) for row in robustness.get("mask") or [])
    if robustness.get("repeats"):
        yield "all", "seeds", robustness["repeats"]


def _probed(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [model for model in results["models"] if model.get("probes")]
