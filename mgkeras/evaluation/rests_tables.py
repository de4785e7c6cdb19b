"""What a decision rests on, as tables: parts of the exam, transplants, the ledger of evidence, controls and sites.

Each gives rows of text of one set of columns, [] where evaluation.json does not hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mgkeras.evaluation.layout import cell, text
from mgkeras.evaluation.readings import DECISIONS, Model, rests_of
from mgkeras.settings import READING_MARGIN

RESTS_NOTE = (
    "AUCs of altered exams are counted within folds, between subjects of one fold, and their differences on the same "
    "draws of subjects. A decision reads 'from the tumour or close by' only where the tumour only lies within "
    f"{READING_MARGIN:g} of whole exams, its whole interval, and the rest only does not: its interval holds 0.5, and "
    f"that of its difference to whole exams lies more than {READING_MARGIN:g} below 0. An AUC below 0.5 is information "
    "as well. Transplants, the mask alone left, the filled tumour and a phantom's traps can take that reading away and "
    "never give it. Transplant: each tumour in another patient's exam, the owner's label against the breast's; "
    "partners are chosen so that a reader of tumours alone has 0.5 for the breast. Ledger: where the decision map's "
    "evidence lies, and how much of the log-odds' variance between patients comes from there. Controls: a hole as "
    "large as the tumour filled elsewhere, the tumour itself filled, and maps that know nothing of the tumour."
)
Table = list[dict[str, str]]


def parts_table(results: Mapping[str, Any]) -> Table:
    """A row a network with paired differences: whole exams, tumour only, rest only, and what that is read as."""
    return [{"Model": model["name"], "AUC whole exams": cell(one["auc_whole"]),
             "tumour only": cell(one["auc_outside_blurred"]), "tumour less whole": cell(one["outside_less_whole"]),
             "rest only": cell(one["auc_inside_blurred"]), "rest less whole": cell(one["inside_less_whole"]),
             "tumour less rest": cell(one["outside_less_inside"]), "kept (ml)": _mean(one.get("kept_ml"), 0),
             "decides": DECISIONS[rests_of(model).kind]}
            for model in results["models"] if (one := model.get("causal") or {}).get("auc_whole")]  # fmt: skip


def transplant_table(results: Mapping[str, Any]) -> Table:
    """A row a network: what it says of tumours in other breasts, with a hard and a soft seam."""
    return [{"Model": model["name"], "subjects": f"{one['subjects']}",
             "trained on it": "yes" if one.get("swap_trained") else "no", "AUC owner (95 %)": cell(one["owner"]),
             "AUC breast (95 %)": cell(one["breast"]), "owner less breast": cell(one.get("owner_less_breast") or {}),
             "soft seam, owner": cell(one.get("soft_owner") or {}),
             "soft seam, breast": cell(one.get("soft_breast") or {}),
             "same class as before": _mean(one.get("same_decision"))}
            for model, one in _probed(results, "transplant")]  # fmt: skip


def ledger_table(results: Mapping[str, Any]) -> Table:
    """A row a network and part of the exam: its share of the cells, of the evidence and of the variance."""
    return [{"Model": model["name"], "part": part["part"], "share of the cells": _mean(part.get("cells")),
             "share of the evidence (95 %)": cell(part.get("evidence") or {}),
             "share of the variance (95 %)": cell(part.get("variance") or {}), "SD": text(part.get("sd"))}
            for model, one in _probed(results, "ledger") for part in one["parts"]]  # fmt: skip


def control_table(results: Mapping[str, Any]) -> Table:
    """A row a network: a hole elsewhere, the tumour filled, and what maps without knowledge have in the tumour."""
    rows = []
    for model, one in _probed(results, "controls"):
        hole, filled = one.get("hole") or {}, one.get("filled") or {}
        mass = model.get("attention", {}).get("all", {}).get("mass_in_mask", {}).get("mean")
        rows.append({"Model": model["name"], "AUC hole elsewhere (95 %)": cell(hole.get("auc") or {}),
                     "hole less whole": cell(hole.get("less_whole") or {}),
                     "hole, change of P": _mean(hole.get("change")),
                     "AUC tumour filled (95 %)": cell(filled.get("auc") or {}),
                     "filled less whole": cell(filled.get("less_whole") or {}),
                     "filled, change of P": _mean(filled.get("change")),
                     "mass in tumour": text(mass), "by chance in the body": _mean(one.get("mass_chance_body")),
                     "of mean T1": _mean(one.get("mass_of_t1"))})  # fmt: skip
    return rows


def site_table(results: Mapping[str, Any]) -> Table:
    """A row a network, column and group: how well features tell the group, and the AUC within it."""
    return [{"Model": model["name"], "column": column["column"], "AUC of it from the features":
             cell(column.get("predicted_auc") or {}), "group": f"{group['group']}", "subjects": f"{group['subjects']}",
             "AUC of the outcome within (95 %)": cell(group["auc"])}
            for model, one in _probed(results, "site") for column in one.get("columns") or ()
            for group in column.get("within") or ()]  # fmt: skip


def _probed(results: Mapping[str, Any], name: str) -> Iterator[tuple[Model, Mapping[str, Any]]]:
    for model in results["models"]:
        if found := (model.get("probes") or {}).get(name):
            yield model, found


def _mean(values: Mapping[str, Any] | None, digits: int = 2) -> str:
    return text((values or {}).get("mean"), digits)
