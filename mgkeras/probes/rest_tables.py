"""What a decision rests on, beside the blurred exams, as tables: transplants, the ledger, controls, the site.

Each function takes the content of evaluation.json and leaves out networks that were not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mgkeras.scores.format import cell, signed, text

TRANSPLANT_NOTE = (
    "Transplant: each held-out tumour with its rim in the exam of another held-out patient of the same fold. Partners "
    "are drawn so that a reader of tumours alone has AUC 1 or its own for the tumour's owner and 0.5 for the breast, a "
    "reader of everything else the other way round. Hard: cut along the rim, the other tumour filled from the tissue "
    "around it, which is how a network is trained by swap. Soft: a seam of 5 mm, the other tumour blurred, with which "
    "none is trained. Same decision: patients whose predicted class stays."
)
LEDGER_NOTE = (
    "Ledger: the log-odds are a constant and the sum over the map's cells of what each brings, so they can be added up "
    "by place. Share of evidence: of the sum of absolute values. Share of variance: covariance with the log-odds "
    "between patients within folds over their variance; the shares sum to 1. A cell is made from all that its "
    "receptive field sees, so this says where the evidence stands in the network, not which tissue it came from."
)
CONTROL_NOTE = (
    "Controls: the tumour with its rim filled from the tissue around it, which unlike a blur leaves nothing of it; and "
    "a hole of the same shape filled elsewhere in the body, mirrored where there is room. Chance in the body: share of "
    "the tumour's cells among those with tissue. Map of the early phase: mass in the tumour of a map that "
    "only copies brightness."
)
SITE_NOTE = (
    "Site: how well the network's pooled features tell it, by a regression cross-fitted among each fold's held-out "
    "patients (one against the rest, mean; 0.5 is chance), and the AUC of the outcome within each group. Where the "
    "outcome goes with the site, only the latter cannot come from it."
)
Values = Mapping[str, Any]


def transplant_table(results: Values) -> list[dict[str, str]]:
    """A row a network: whose label it follows, by both operators."""
    return [
        {
            "Model": model["name"],
            "subjects": f"{transplant['subjects']}",
            "AUC owner (95 %)": cell(transplant["owner"]),
            "AUC breast (95 %)": cell(transplant["breast"]),
            "owner - breast": signed(transplant["owner_less_breast"]),
            "soft: owner": cell(transplant["soft_owner"]),
            "soft: breast": cell(transplant["soft_breast"]),
            "same decision": cell(transplant["same_decision"]),
            "trained by swap": "yes" if transplant["swap_trained"] else "no",
        }
        for model, transplant in _asked(results, "transplant")
    ]


def ledger_table(results: Values) -> list[dict[str, str]]:
    """A row a network and part of the exam: its cells, its evidence and its part in what tells patients apart."""
    return [
        {
            "Model": model["name"],
            "part": part["part"],
            "share of cells": text(part["cells"]["mean"], 3),
            "share of evidence (95 %)": cell(part["evidence"]),
            "share of variance (95 %)": cell(part["variance"]),
            "SD (log-odds)": text(part["sd"]),
        }
        for model, ledger in _asked(results, "ledger")
        for part in ledger["parts"]
    ]


def control_table(results: Values) -> list[dict[str, str]]:
    """A row a network: the tumour filled, a hole elsewhere filled, and two chances for its map's mass."""
    return [
        {
            "Model": model["name"],
            "AUC tumour filled": cell(controls["filled"]["auc"]),
            "less whole": signed(controls["filled"]["less_whole"]),
            "AUC hole elsewhere": cell(controls["hole"]["auc"]),
            "hole less whole": signed(controls["hole"]["less_whole"]),
            "change, tumour filled": cell(controls["filled"]["change"]),
            "change, hole elsewhere": cell(controls["hole"]["change"]),
            "mass by chance in the body": text(controls["mass_chance_body"]["mean"]),
            "mass of a map of the early phase": text(controls["mass_of_t1"]["mean"]),
        }
        for model, controls in _asked(results, "controls")
    ]


def site_table(results: Values) -> list[dict[str, str]]:
    """A row a network, column and group: the site from the features, and the outcome's AUC within the group."""
    return [
        {
            "Model": model["name"],
            "column": column["column"],
            "AUC of the site": cell(column["predicted_auc"]),
            "group": row["group"],
            "subjects": f"{row['subjects']}",
            "AUC within it (95 %)": cell(row["auc"]),
        }
        for model, found in _asked(results, "site")
        for column in found["columns"]
        for row in column["within"]
    ]


def rest_tables(results: Values) -> list[tuple[str, list[dict[str, str]], str]]:
    """(title, rows, note) of each table that has rows."""
    found = [
        ("Tumours in another breast", transplant_table(results), TRANSPLANT_NOTE),
        ("What each part brings to the log-odds", ledger_table(results), LEDGER_NOTE),
        ("Controls", control_table(results), CONTROL_NOTE),
        ("The site in the features", site_table(results), SITE_NOTE),
    ]
    return [table for table in found if table[1]]


def rest_values(probes: Values) -> Iterator[tuple[str, str, Values]]:
    """(group, part, scores) of one network's probes, for evaluation.csv."""
    if transplant := probes.get("transplant"):
        yield "all", "transplant", transplant
    if ledger := probes.get("ledger"):
        yield "all", "ledger", ledger
        yield from ((part["part"], "ledger", {**part, "brought_sd": {"value": part["sd"]}}) for part in ledger["parts"])
    if controls := probes.get("controls"):
        yield "all", "controls", controls
        yield from ((name, "controls", controls[name]) for name in ("hole", "filled"))
    for column in (probes.get("site") or {"columns": []})["columns"]:
        yield column["column"], "site", column
        yield from ((f"{column['column']} {group['group']}", "site", group) for group in column["within"])


def _asked(results: Values, what: str) -> Iterator[tuple[Values, Values]]:
    """(network, what was asked of it) of those that were."""
    for model in results["models"]:
        if found := (model.get("probes") or {}).get(what):
            yield model, found
