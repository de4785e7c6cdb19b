"""A study's tables as a page that opens without a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgkeras.evaluation.seeds import NOTES, study_tables
from mgkeras.report.page import inline, template


def study_html(title: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of study.html: the tables and notes of evaluation.seeds.study_page, whose arguments it takes."""
    return template("study.html").render(
        title=title, groups=study_tables(groups), notes=NOTES, style=inline("report.css")
    )
