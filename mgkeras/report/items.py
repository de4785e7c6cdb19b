"""What assets/report_items.html shows: the 15 items that a serious evaluation shows, and what is not known of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mgkeras.data.groups import grouped
from mgkeras.evaluation import tables
from mgkeras.evaluation.readings import READING_NOTE
from mgkeras.probes import rest_tables
from mgkeras.probes import tables as probe_tables
from mgkeras.report import tables as report_tables
from mgkeras.report.facts import Facts, RunFacts
from mgkeras.scores.summary import number
from mgkeras.settings import NEVER

PATIENTS = ("age", "menopausal status", "stage", "ethnicity")


def about(
    results: Mapping[str, Any],
    facts: Facts,
    subgroups: Sequence[Mapping[str, Any]],
    labels: Mapping[str, int],
    gaps: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The values that the template of the 15 items needs.

    Args:
        results: the content of evaluation.json.
        facts: of the runs' files.
        subgroups, gaps: from subgroups.subgroup_scores and group_gaps.
        labels: {subject: 0 or 1}.
    """
    first = facts.runs[0]  # cohort, folds and masks are the same in all
    columns = list(first.cohort[0]) if first.cohort else []
    return {
        "results": results,
        "facts": facts,
        "subgroups": subgroups,
        "gaps": gaps,
        "labels": labels,
        "first": first,
        "cohort_columns": columns,
        "wanted": [name for name in PATIENTS if name not in columns],
        "empty": [row["subject"] for row in first.masks if not number(row.get("volume_mm3"))],
        "never": sum(fold == NEVER for fold in first.folds.get("held_out_in", {}).values()),
        "twins": _twins(first),
        "acquired": {
            column: Counter(row.get(column) or "not said" for row in first.cohort)
            for column in ("site", "scanner")
            if column in columns
        },
        "simple": {model["name"]: model["note"] for model in results["models"] if model["kind"] == "baseline"},
        "skipped": [text for text in results["skipped"] if not text.startswith(("probes", "map of"))],
        "wrong": [name for name, why in (facts.chosen or {}).items() if any(" by " in reason for reason in why)],
        "reading_note": READING_NOTE,
        "of_run": report_tables,
        "tables": tables,
        "probes": probe_tables,
        "rests": rest_tables,
    }


def _twins(run: RunFacts) -> list[str]:
    """Groups of subjects whose early phase has the same bytes, 'A = B'."""
    names = grouped((subject.get("early"), name) for name, subject in run.data.get("subjects", {}).items())
    return [" = ".join(group) for digest, group in names.items() if digest and len(group) > 1]
