"""evaluation.json as tables: long rows for evaluation.csv, short ones for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mgkeras.data.markdown import escaped
from mgkeras.evaluation import readings
from mgkeras.probes import tables as probe_tables
from mgkeras.probes.rest_tables import rest_tables
from mgkeras.scores.comparison import pair_rows
from mgkeras.scores.format import as_markdown, cell, signed, text
from mgkeras.scores.summary import DECISIONS

CSV_COLUMNS = ("model", "kind", "part", "group", "threshold", "score", "value", "low", "high", "sd", "count", "p")
ATTENTION = (
    "mass_in_mask",
    "mass_chance",
    "mass_enrichment",
    "peak_within_10mm",
    "peak_distance_mm",
    "rank_accuracy",
    "mass_in_ring",
    "mass_outside_body",
)
NOTES = (
    "AUC, AP (average precision; chance is the share of positives), Brier score and calibration (slope 1 and intercept "
    "0 are perfect; in the large: the intercept at slope 1, of which 0 is perfect): pooled out-of-fold probabilities, "
    "in brackets a percentile bootstrap interval. Folds: mean (SD) over folds. A dash: undefined. Models that make no "
    "error on the sample, be it 2 against 2, get an interval without width: that is where the bootstrap ends, not "
    "certainty. Baselines are fitted on the other folds: one that knows nothing has an AUC under 0.5 (in simulation "
    "0.49 with 115 subjects in 5 folds, 0.48 with 60 in 3, 0.44 with 40 in 5), so that a network at 0.5 is no better.",
    "Mass in tumour: share of the evidence, for a class or against it (the decision map's absolute value), in cells "
    "of the map's own grid that the tumour touches; chance is what a map without knowledge expects. A guided model "
    "is trained on such an overlap, so that it scores well here shows no more than that training worked: read the "
    "AUC with everything outside the dilated mask blurred (tumour only) and everything inside it blurred (outside "
    "only) beside it. These AUCs, and that of whole exams beside them, count pairs of subjects within folds.",
    "Differences are a - b of pooled AUCs on the same subjects, of these weights and not of the methods: trained "
    "again, equal methods differ too (in simulation, where training varied by 20, 40 and 60 %, DeLong's test called "
    "12, 22 and 27 % of equal methods different). p values are not corrected for the number of tests.",
)
Row = dict[str, Any]


def csv_rows(results: Mapping[str, Any]) -> list[Row]:
    """Every number of evaluation.json, a row a number, {column of CSV_COLUMNS: value or None}.

    part: 'score', 'attention', 'causal' or 'difference'. group: 'pooled', 'within folds' (causal), 'fold 0', ...,
    'over folds'; for attention
    'all', 'class_0', 'class_1', 'right', 'wrong'; for a difference the test. threshold: 'train' (Youden on the fold's
    training subjects), '0.5', or None where the score needs none. count: subjects, or folds of 'over folds'.
    """
    found: list[Row] = []
    for model in results["models"]:
        named = {"model": model["name"], "kind": model["kind"]}
        found += [_row(**named, **row) for part in (_scores, _causal, _attention) for row in part(model, results)]
        found += [_row(**named, **row) for row in probe_tables.probe_rows(model)]
    for pair in results["pairs"]:
        for test in ("delong", "bootstrap"):
            values = pair[test] or {}
            found.append(
                _row(
                    model=f"{pair['a']} - {pair['b']}",
                    kind="pair",
                    part="difference",
                    group=test,
                    score="auc",
                    value=values.get("difference"),
                    low=values.get("low"),
                    high=values.get("high"),
                    p=values.get("p"),
                    count=results["subjects"],
                )
            )
    return found


def _row(**values: Any) -> Row:
    return {column: values.get(column) for column in CSV_COLUMNS}


def _scores(model: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Row]:
    for name, values in model["pooled"].items():
        threshold = "train" if name in DECISIONS else None
        common = {"part": "score", "score": name, "threshold": threshold}
        yield {**common, **values, "group": "pooled", "count": results["subjects"]}
        for fold in model["per_fold"]:
            yield {**common, "group": f"fold {fold['fold']}", "value": fold[name], "count": fold["subjects"]}
        over = model["over_folds"][name]
        yield {**common, "group": "over folds", "value": over["mean"], "sd": over["sd"], "count": over["folds"]}
    for name, values in model["at_half"].items():
        yield {
            "part": "score",
            "score": name,
            "threshold": "0.5",
            **values,
            "group": "pooled",
            "count": results["subjects"],
        }


def _causal(model: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Row]:
    for name, values in model.get("causal", {}).items():
        if values:
            yield {
                "part": "causal",
                "group": "within folds",
                "score": name,
                "low": values["low"],
                "high": values["high"],
                "value": values.get("value", values.get("mean")),
                "count": values.get("subjects"),
            }


def _attention(model: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Row]:
    for group, scores in model.get("attention", {}).items():
        for name, values in scores.items():
            yield {
                "part": "attention",
                "group": group,
                "score": name,
                "value": values["mean"],
                "sd": values["sd"],
                "count": values["defined"],
            }
    for group, values in model.get("above_chance", {}).items():
        yield {
            "part": "attention",
            "group": group,
            "score": "mass_above_chance",
            "value": values["mean"],
            "low": values["low"],
            "high": values["high"],
            "count": values["subjects"],
        }


def score_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a model: how well it ranks, and how far its probabilities can be believed."""
    rows = []
    for model in results["models"]:
        pooled, over = model["pooled"], model["over_folds"]["auc"]
        sd = "" if over["sd"] is None else f" ({text(over['sd'])})"
        rows.append(
            {
                "Model": model["name"],
                "AUC (95 %)": cell(pooled["auc"]),
                "AUC folds": text(over["mean"]) + sd,
                "AP (95 %)": cell(pooled["average_precision"]),
                "Brier (95 %)": cell(pooled["brier_loss"], 3),
                "slope (95 %)": cell(pooled["calibration_slope"]),
                "intercept (95 %)": cell(pooled["calibration_intercept"]),
                "in the large (95 %)": cell(pooled["calibration_in_the_large"]),
            }
        )
    return rows


def decision_table(results: Mapping[str, Any], part: str) -> list[dict[str, str]]:
    """A row a model: the pooled decisions; part 'pooled' (training thresholds) or 'at_half' (0.5)."""
    return [
        {"Model": model["name"], **{name.replace("_", " "): cell(model[part][name]) for name in DECISIONS}}
        for model in results["models"]
    ]


def attention_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a network and group of subjects: the means of ATTENTION, and mass above chance with its interval.

    Below a probed network stands the same network with random weights, on all subjects.
    """
    rows = []
    for model in results["models"]:
        groups = [
            (group.replace("_", " "), scores, model["above_chance"].get(group, {}))
            for group, scores in model.get("attention", {}).items()
        ]
        if model.get("probes"):
            untrained = model["probes"]["random_network"]
            groups.append(("all, random weights", untrained["attention"], untrained["above_chance"]))
        for group, scores, above in groups:
            cells = {name.replace("_", " "): text(scores.get(name, {}).get("mean")) for name in ATTENTION}
            counted = scores.get("mass_in_mask", {})
            rows.append(
                {
                    "Model": model["name"],
                    "subjects": group,
                    "defined": f"{counted.get('defined', 0)}",
                    "undefined": f"{counted.get('undefined', 0)}",
                    **cells,
                    "mass above chance (95 %)": cell(above),
                }
            )
    return rows


def causal_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a network: the AUC on whole exams, on the tumour only and on everything but the tumour, within folds."""
    return [
        {
            "Model": model["name"],
            "AUC whole exam": cell(causal.get("auc_whole", model["pooled"]["auc"])),
            "AUC tumour only": cell(causal.get("auc_outside_blurred", {})),
            "AUC outside only": cell(causal.get("auc_inside_blurred", {})),
            "tumour only - whole": signed(causal.get("outside_less_whole", {})),
            "outside only - whole": signed(causal.get("inside_less_whole", {})),
            "tumour only - outside only": signed(causal.get("outside_less_inside", {})),
            "kept (ml)": cell(causal.get("kept_ml") or {}, 1),
            "decides": readings.DECISIONS[readings.rests_of(model).kind],
        }
        for model in results["models"]
        if (causal := model.get("causal"))
    ]


def as_page(results: Mapping[str, Any]) -> str:
    """The content of table.md."""
    n, positives = results["subjects"], results["positives"]
    probed = any(model.get("probes") for model in results["models"])
    rest = rest_tables(results)
    parts: list[tuple[str, Sequence[dict[str, str]]]] = [
        ("Scores", score_table(results)),
        ("Decisions at thresholds chosen on the training subjects", decision_table(results, "pooled")),
        ("Decisions at 0.5", decision_table(results, "at_half")),
        ("What the decision rests on", causal_table(results)),
        ("The same by dilation of the mask", probe_tables.causal_table(results)),
        *((title, rows) for title, rows, _ in rest),
        ("The traps removed and added", probe_tables.trap_table(results)),
        ("Does the map agree with occlusion", probe_tables.occlusion_table(results)),
        ("Where the maps look", attention_table(results)),
        ("Layers randomised from the output down", probe_tables.randomised_table(results)),
        ("Another mask", probe_tables.mask_table(results)),
        ("Another box", probe_tables.box_table(results)),
        ("Other seeds", probe_tables.repeats_table(results)),
        ("Differences of AUC", pair_rows(results["pairs"])),
    ]
    page = f"# {escaped(results['outcome'])}: {n} subjects, {positives} positive, {results['folds']} folds\n"
    page += "".join(f"\n## {title}\n\n{as_markdown(rows)}" for title, rows in parts if rows)
    moved = any(any((model.get("robustness") or {}).values()) for model in results["models"])
    more = [probe_tables.PROBE_NOTE] * probed + [note for *_, note in rest] + [probe_tables.ROBUSTNESS_NOTE] * moved
    notes = [*NOTES, *more, results["threshold_rule"], *map(escaped, _remarks(results))]
    return page + "\n## Notes\n\n" + "".join(f"- {note}\n" for note in notes)


def _remarks(results: Mapping[str, Any]) -> Iterator[str]:
    for model in results["models"]:
        if model["note"]:
            yield f"{model['name']}: {model['note']}"
        if model["threshold_fallback"]:
            folds = ", ".join(map(str, model["threshold_fallback"]))
            yield f"{model['name']}: threshold 0.5 in fold {folds}, whose training rows hold one class or are missing"
    yield from results.get("edited", ())
    yield from (f"not scored: {reason}" for reason in results["skipped"])
