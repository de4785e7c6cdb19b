"""An evaluation and the runs' facts in, one HTML file out that opens from a disk without network.

The page is rendered from assets/report.html with assets/report.css and assets/report.js; the viewer is NiiVue (BSD-2),
assets/niivue.umd.js. evaluation.json is in the page as it is, in the script element ``evaluation``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mgkeras.errors import InputError, few
from mgkeras.evaluation import readings
from mgkeras.evaluation.evaluate import Evaluated, shared
from mgkeras.report import words
from mgkeras.report.facts import Facts, Viewer
from mgkeras.report.figures import Picture, median_panel, pictures, strip
from mgkeras.report.items import about
from mgkeras.scores.format import text
from mgkeras.scores.subgroups import group_gaps, subgroup_scores

ASSETS = Path(__file__).parent / "assets"
NAMED = 12  # names that a sentence lists before it says how many more there are
SPARE = 20_000  # bytes: the viewer's controls and the names of those left out
RULES = "script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data: blob:; connect-src data: blob:"


@dataclass(frozen=True)
class Number:
    """A cell of the table at the top.

    Attributes:
        value: as it is read. under: the interval, or what stands beside it.
        path: where evaluation.json has it, for example 'models/2/pooled/auc/value'.
    """

    value: str
    under: str = ""
    path: str = ""


@dataclass(frozen=True)
class Drawn:
    """The parts of a page that do not depend on the viewer's size."""

    pictures: Mapping[str, Picture]
    subgroups: Sequence[Mapping[str, Any]]
    gaps: Sequence[Mapping[str, Any]] = ()


def draw(found: Evaluated, facts: Facts) -> Drawn:
    """Draws the pictures and scores the subgroups: what takes time."""
    networks, results = [model for model in found.models if model.kind == "network"], found.results
    arrays = (networks, facts.runs[0].cohort, results["outcome"])
    options = {"samples": results["samples"], "seed": results["seed"]}
    return Drawn(pictures(found, facts), subgroup_scores(*arrays, **options), group_gaps(*arrays, **options))


def page(found: Evaluated, facts: Facts, drawn: Drawn, viewer: Viewer) -> str:
    """The report as HTML.

    Args:
        found: the evaluation.
        facts, viewer: from report.collect.
        drawn: from draw.
    """
    results, panel = found.results, median_panel(facts)
    told = words.findings(
        results,
        [run.name for run in facts.runs if run.guided],
        boxed=[run.name for run in facts.runs if run.boxed],
        phantom=facts.phantom,
        kept_mm={run.name: run.kept_mm for run in facts.runs if run.kept_mm},
    )
    labels = dict(zip(found.models[0].subjects, found.models[0].labels.tolist(), strict=True))
    return template("report.html").render(
        about(results, facts, drawn.subgroups, labels, drawn.gaps),
        told=told,
        columns=list(columns(results)),
        rows=list(top_rows(results, told)),
        cuts=strip(panel, str(results["outcome"])) if panel else [],
        voxel_mm=panel.voxel_mm if panel else None,
        pictures=drawn.pictures,
        viewer=viewer,
        boxed=[run.name for run in facts.runs if run.boxed],
        rules=RULES,
        style=inline("report.css"),
        script=inline("report.js"),
        niivue=inline("niivue.umd.js") if viewer.cases else "",
        evaluation=as_script(shared(results)),
        cases=as_script([asdict(case) for case in viewer.cases]),
        words={"map": readings.MAPS, "decision": readings.DECISIONS},
    )


def room(found: Evaluated, facts: Facts, drawn: Drawn, max_bytes: float) -> float:
    """How many bytes a page of ``max_bytes`` has left for exams, beside all else and the viewer's program."""
    return max_bytes - len(page(found, facts, drawn, Viewer()).encode()) - len(inline("niivue.umd.js").encode()) - SPARE


def template(name: str) -> jinja2.Template:
    """One of the page templates in ASSETS; values are escaped, and one that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["named"] = partial(few, limit=NAMED)
    return environment.get_template(name)


def inline(name: str) -> Markup:
    """An asset as it stands in the page, where no markup of its own may end its element.

    Raises:
        ValueError: it holds such markup.
    """
    found = (ASSETS / name).read_text(encoding="utf-8")
    ends = ("</style",) if name.endswith(".css") else ("</script", "<!--")
    if any(end in found.lower() for end in ends):
        raise InputError(f"expected an asset that can stand inside an element. Received: {name} with an end tag")
    return Markup(found)


def as_script(values: Any) -> Markup:
    """JSON for a script element: the same values when parsed, and no '<' that could end the element."""
    plain = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return Markup(plain.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def columns(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(heading, what is below it) of the table at the top."""
    yield "AUC", "95 % interval"
    yield "Map in the tumour", "share of its mass"
    paired = any((model.get("causal") or {}).get("auc_whole") for model in results["models"])
    yield "AUC, tumour only", "within folds, beside whole exams" if paired else "all else blurred"
    yield "AUC, rest only", "within folds, beside whole exams" if paired else "tumour blurred"
    for trap in _traps(results):
        yield f"AUC, {trap} removed", "and added"


def top_rows(results: Mapping[str, Any], told: words.Findings) -> Iterator[dict[str, Any]]:
    """A row a model: its name, the numbers that matter, and what they are read as."""
    traps = _traps(results)
    for place, model in enumerate(results["models"]):
        if model["name"] == "majority class":
            continue
        at, causal = f"models/{place}", model.get("causal", {})
        numbers = [_number(model["pooled"]["auc"], f"{at}/pooled/auc")]
        numbers.append(_map(model, f"{at}/attention/all/mass_in_mask/mean"))
        numbers += [_part(causal, f"auc_{part}_blurred", at) for part in ("outside", "inside")]
        numbers += [_trap(model, trap, f"{at}/probes/traps") for trap in traps]
        yield {
            "name": model["name"],
            "kind": model["kind"],
            "numbers": numbers,
            "reading": told.readings.get(model["name"]),
        }


def _number(values: Mapping[str, Any], path: str) -> Number:
    if values.get("value") is None:
        return Number("–")
    under = "" if values.get("low") is None else f"{text(values['low'])} to {text(values['high'])}"
    return Number(text(values["value"]), under, f"{path}/value")


def _part(causal: Mapping[str, Any], name: str, at: str) -> Number:
    """A part's AUC within folds; below it the interval and the AUC of whole exams, counted in the same way."""
    found, whole = _number(causal.get(name) or {}, f"{at}/causal/{name}"), (causal.get("auc_whole") or {}).get("value")
    beside = filter(None, (found.under, "" if whole is None else f"whole {text(whole)}"))
    return replace(found, under=", ".join(beside)) if found.path else found


def _map(model: Mapping[str, Any], path: str) -> Number:
    """The map's mass in the tumour; below it what it is held to: chance over all cells, and over the body's."""
    mass, chance = readings.mean_of(model, "mass_in_mask"), readings.mean_of(model, "mass_chance")
    if mass is None:
        return Number("–")
    body = readings.interval(readings.controls_of(model).get("mass_chance_body")).value
    under = f"chance {text(chance)}" + ("" if body is None else f", in the body {text(body)}")
    return Number(text(mass), under, path)


def _traps(results: Mapping[str, Any]) -> list[str]:
    """The phantom's traps that any network was asked about."""
    return list(dict.fromkeys(trap["trap"] for model in results["models"] for trap in readings.traps_of(model)))


def _trap(model: Mapping[str, Any], trap: str, path: str) -> Number:
    for place, scores in enumerate((model.get("probes") or {}).get("traps") or ()):
        if scores["trap"] == trap and scores["auc_removed"]["value"] is not None:
            return Number(
                text(scores["auc_removed"]["value"]),
                f"added {text(scores['auc_added']['value'])}",
                f"{path}/{place}/auc_removed/value",
            )
    return Number("–")
