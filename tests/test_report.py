"""The report: its sentences follow the numbers, its tables are evaluation.json's, and it needs no other file."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import dataclass, replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import reporting
from click.testing import CliRunner
from mgkeras.cli.evaluate import command as evaluate_command
from mgkeras.cli.report import command
from reporting import network
from sklearn.metrics import roc_auc_score

from mgkeras.data.volume import CubeFrame, from_cube
from mgkeras.errors import InputError
from mgkeras.evaluation import tables
from mgkeras.evaluation.evaluate import Evaluated, evaluate, shared
from mgkeras.probes import rest_tables
from mgkeras.probes import tables as probe_tables
from mgkeras.report import tables as report_tables
from mgkeras.report import words
from mgkeras.report.collect import cells_affine, chosen_subjects, packed, report_facts, viewer
from mgkeras.report.facts import Viewer, peak_of
from mgkeras.report.items import about
from mgkeras.report.page import as_script, draw, page, room, template
from mgkeras.runs import store
from mgkeras.runs.store import read_rows
from mgkeras.scores import format as layout
from mgkeras.scores.comparison import pair_rows
from mgkeras.scores.subgroups import gap, group_gaps, groups_of, subgroup_scores

QUICK = 30  # bootstrap draws


class Read(HTMLParser):
    """What a page holds: attributes, the text by element, and tables as {caption: rows of cells}."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.paths, self.scripts, self.tables, self.words = [], {}, {}, {}, []
        self.open, self.row, self.caption = [], None, ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append((tag, attributes))
        if tag == "tr":
            self.row = []
        if tag in ("td", "th") and self.row is not None:
            self.row.append("")

    def handle_endtag(self, tag):
        self.open.pop()
        if tag == "caption":
            self.tables[self.caption] = []
        if tag == "tr":
            self.tables[self.caption].append(self.row)
            self.row = None

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script":
            self.scripts[attributes.get("id", "")] = data
        elif tag != "style":
            self.words.append(data)
        if tag == "caption":
            self.caption = data
        if self.row:
            self.row[-1] += data
        if "data-path" in attributes:
            self.paths[attributes["data-path"]] = data


@pytest.fixture(scope="module")
def runs(tmp_path_factory, phantom, small):
    return reporting.make_runs(tmp_path_factory.mktemp("runs"), phantom, small)


@pytest.fixture(scope="module")
def found(runs):
    return evaluate(runs, clinical=("age",), samples=QUICK)


@pytest.fixture(scope="module")
def folders(found):
    return {model["name"]: Path(model["folder"]) for model in found.results["models"] if "folder" in model}


@pytest.fixture(scope="module")
def facts(folders):
    return report_facts(folders)


@pytest.fixture(scope="module")
def drawn(found, facts):
    return draw(found, facts)


@pytest.fixture(scope="module")
def html(found, facts, drawn, folders):
    return page(found, facts, drawn, viewer(folders, facts, 1e9))


# --- sentences


GOOD, BAD = (0.8, 0.7, 0.9), (0.5, 0.4, 0.6)


def told(*models, pairs=(), positives=30, **options):
    results = {
        "outcome": "recurrence",
        "models": list(models),
        "pairs": list(pairs),
        "subjects": 100,
        "positives": positives,
    }
    return words.findings(results, ["guided"], **options)


def test_a_map_in_the_tumour_with_a_decision_from_elsewhere_is_the_headline():
    plain = network(name="no-mask", mass=0.02, above=(-0.03, -0.04, -0.02), tumour=BAD, rest=GOOD)
    found = told(plain, network(tumour=BAD, rest=GOOD))
    assert found.headlines == (
        "guided: its map lies in the tumour, but these weights decide mostly from outside the tumour: AUC 0.80 on "
        "whole exams, 0.50 with only the tumour and 5 mm around it left, 0.80 with that blurred.",
    )
    assert "proves nothing" in found.cautions[0] and "proves nothing" in " ".join(found.sentences["guided"])
    assert "proves nothing" not in " ".join(found.sentences["no-mask"])
    assert "2\u00a0% in the no-mask model" in " ".join(found.sentences["guided"])
    assert any("not of the method" in caution for caution in found.cautions)
    assert not any("not of the method" in caution for caution in told(network()).cautions)


def test_a_headline_says_how_much_was_kept_around_the_tumour():
    assert "and 7.5 mm around it left" in told(network(), kept_mm={"guided": 7.5}).headlines[0]


@pytest.mark.parametrize(
    ("auc", "words_"),
    [
        (GOOD, "tells the classes apart"),
        ((0.55, 0.4, 0.7), "is not shown to tell the classes apart"),
        ((0.12, 0.0, 0.35), "ranks the classes the wrong way round"),
    ],
)
def test_an_auc_is_put_in_words_by_its_interval(auc, words_):
    assert f"For recurrence it {words_}: AUC" in told(network(auc=auc)).sentences["guided"][0]


def test_few_subjects_of_a_class_are_a_caution():
    assert "The smaller class has 9 subjects" in told(network(), positives=9).cautions[0]
    assert "The smaller class has 4 subjects" in told(network(), positives=96).cautions[0]
    assert not any("smaller class" in caution for caution in told(network(), positives=10).cautions)


def test_a_leak_is_suspected_on_patients_and_not_on_the_phantom():
    high, modest = network(auc=(0.86, 0.8, 0.9)), network(auc=(0.85, 0.8, 0.9))
    assert "Suspect a leak" in told(high).cautions[-1] and "guided (0.86)" in told(high).cautions[-1]
    assert not any("leak" in sentence for sentence in told(modest).cautions)
    assert "synthetic" in told(high, phantom=True).cautions[-1]
    assert not any("leak" in sentence for sentence in told(high, phantom=True).cautions)


def test_the_difference_to_the_no_mask_model_has_the_guided_models_sign():
    pair = {"a": "no-mask", "b": "guided", "delong": {"difference": -0.1, "low": -0.15, "high": -0.05, "auc_b": 0.8}}
    found = told(network(name="no-mask"), network(), pairs=[pair])
    assert (
        "Its AUC less that of the no-mask model's weights is +0.10 (+0.05 to +0.15): these rank better."
        in found.sentences["guided"]
    )
    assert not any("less that of" in sentence for sentence in found.sentences["no-mask"])
    undefined = {**pair, "delong": {"difference": 0.0, "low": None, "high": None}}
    assert told(network(name="no-mask"), network(), pairs=[undefined])


@pytest.mark.parametrize(
    ("auc", "theirs", "words_"),
    [
        ((0.8, 0.7, 0.9), 0.4, "rank better than"),
        ((0.58, 0.48, 0.67), 0.4, "are not shown to rank better than"),  # it is not shown better than chance
        ((0.7, 0.48, 0.8), 0.55, "rank better than"),
    ],
)
def test_a_baseline_under_one_half_is_beaten_by_who_beats_one_half(auc, theirs, words_):
    """Fitted on other folds, what knows nothing ranks under 0.5: a lung cohort's volume had 0.40, a network 0.58."""
    pair = {"a": "guided", "b": "tumour volume", "delong": {"difference": 0.18, "low": 0.05, "high": 0.31}}
    pair["delong"]["auc_b"] = theirs
    simple = {"name": "tumour volume", "kind": "baseline", "pooled": {"auc": reporting.score((theirs, 0.3, 0.6))}}
    sentences = " ".join(told(network(auc=auc), simple, pairs=[pair]).sentences["guided"])
    assert f"These weights {words_} the tumour's volume alone, whose AUC is {theirs:.2f}" in sentences
    assert ("under 0.5" in sentences) is (words_ != "rank better than")


def test_probes_are_told_and_their_absence_is_said():
    spot = {
        "trap": "spot",
        "subjects": 60,
        "with_trap": 31,
        "auc_as_is": {"value": 0.97, "low": 0.9, "high": 1.0},
        "auc_removed": {"value": 0.55, "low": 0.4, "high": 0.7},
        "auc_added": {"value": 0.58, "low": 0.4, "high": 0.7},
        "change_removed": {"mean": 0.41},
    }
    site = {
        **spot,
        "trap": "site",
        "auc_removed": {"value": 0.95, "low": 0.9, "high": 0.98},
        "auc_added": {"value": 0.95, "low": 0.9, "high": 0.98},
    }
    probes = {
        "traps": [spot, site],
        "occlusion": {"rank_correlation": {"mean": 0.4, "low": 0.3, "high": 0.5}},
        "random_network": {"attention": {"mass_in_mask": {"mean": 0.04}}},
    }
    said = " ".join(told(network(probes=probes)).sentences["guided"])
    assert "it leans on the spot" in said and "by 0.41 on average" in said
    assert "moderately agrees with" in said and "4\u00a0% in the same network with random weights" in said
    assert "was not probed" in " ".join(told(network(probes=None)).sentences["guided"])
    assert "scanned at the one site its AUC is 0.95" in said and "not shown to need the site" in said
    cautions = told(network(probes=probes), phantom=True).cautions
    assert "the spot far from the tumour (in 31 of 60) and the site (in 31 of 60)" in cautions[-1]
    assert "no trap was asked for" in told(network(), phantom=True).cautions[-1]
    spot["auc_removed"]["high"] = spot["auc_added"]["high"] = 0.98
    assert "not shown to need the spot" in " ".join(told(network(probes=probes)).sentences["guided"])


def test_undefined_scores_are_words_not_none():
    empty = {"name": "guided", "kind": "network", "pooled": {"auc": {"value": None, "low": None, "high": None}}}
    found = told(empty)
    said = " ".join((*found.headlines, *found.sentences["guided"]))
    assert "undefined" in said and "None" not in said and "nan" not in said


# --- the page


def at(results, path):
    for part in path.split("/"):
        results = results[int(part)] if isinstance(results, list) else results[part]
    return results


def test_the_page_holds_evaluation_json_as_it_is(html, found):
    assert json.loads(Read(html).scripts["evaluation"]) == json.loads(json.dumps(shared(found.results)))


def test_the_numbers_at_the_top_are_those_of_evaluation_json(html, found):
    paths = Read(html).paths
    assert len(paths) == 3 * 4 + 2  # three networks with four numbers, two baselines with their AUC
    for path, shown in paths.items():
        assert shown == f"{at(found.results, path):.2f}", path


def test_the_tables_are_those_of_evaluation_json(html, found):
    shown, results = Read(html).tables, found.results
    expected = {
        "Scores of held-out subjects": tables.score_table(results),
        "Decisions at thresholds chosen on training subjects": tables.decision_table(results, "pooled"),
        "Decisions at 0.5": tables.decision_table(results, "at_half"),
        "What the decision rests on": tables.causal_table(results),
        "Where the maps look": tables.attention_table(results),
        "Differences of AUC between models": pair_rows(results["pairs"]),
    }
    for caption, rows in expected.items():
        assert shown[caption] == [list(rows[0]), *(list(row.values()) for row in rows)], caption


def test_a_page_of_probed_runs_shows_the_probes(found, facts, drawn):
    results = reporting.probed(found.results)
    probed = Evaluated(results, found.models, found.attention)
    shown = Read(page(probed, facts, drawn, Viewer()))
    for caption, rows in {
        "The traps removed and added": probe_tables.trap_table(results),
        "Each tumour in another breast": rest_tables.transplant_table(results),
        "Where the evidence lies": rest_tables.ledger_table(results),
        "Controls that know nothing of the tumour": rest_tables.control_table(results),
        "The site in the features": rest_tables.site_table(results),
        "Does the map agree with occlusion": probe_tables.occlusion_table(results),
        "Other seeds": probe_tables.repeats_table(results),
        "Another mask": probe_tables.mask_table(results),
    }.items():
        assert rows and shown.tables[caption][1:] == [list(row.values()) for row in rows]
    assert shown.paths["models/2/probes/traps/0/auc_removed/value"] == "0.52"
    assert shown.paths["models/2/probes/traps/1/auc_removed/value"] == "0.96"
    assert "leans on the spot" in "".join(shown.words)
    body = results["models"][2]["probes"]["controls"]["mass_chance_body"]["mean"]
    assert f", in the body {body:.2f}" in "".join(shown.words), "a map is held to it too"


def test_the_page_asks_for_nothing(html):
    read = Read(html)
    for tag, attributes in read.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, name)
    policy = next(a["content"] for tag, a in read.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "http" not in policy and "*" not in policy
    style = re.search(r"<style>(.*?)</style>", html, re.S).group(1)
    assert "url(" not in style and "@import" not in style


def test_what_a_file_says_cannot_become_markup(html):
    assert "lost &lt;/script&gt;&lt;b&gt;" in html and "CPU &lt;2 cores&gt;" in html
    assert not any(tag == "b" for tag, _ in Read(html).tags)


@pytest.mark.parametrize("value", ["</script><script>alert(1)</script>", "<!--", "a\u2028b", "plain", 0.1, None])
def test_json_in_a_script_element_ends_only_where_it_should(value):
    shown = str(as_script({"x": value}))
    assert json.loads(shown) == {"x": value} and "<" not in shown and "\u2028" not in shown


def test_every_picture_and_control_is_named(html):
    read = Read(html)
    assert all(attributes.get("alt") for tag, attributes in read.tags if tag == "img")
    labelled = {attributes.get("for") for tag, attributes in read.tags if tag == "label"}
    for tag, attributes in read.tags:
        if tag in ("select", "input") and attributes.get("type") != "checkbox":
            assert attributes["id"] in labelled
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


# --- the 15 items


@dataclass(frozen=True)
class Item:
    """One of the 15: its title, the sentences of what is known, its tables by caption, and what is not known."""

    title: str
    known: list[str]
    tables: dict[str, list[dict[str, str]]]
    unknown: str


def items(results, facts, subgroups, labels):
    """The 15 items as the page shows them, without pictures."""
    page = template("report_items.html").render(about(results, facts, subgroups, labels), pictures={})
    return [_item(part) for part in re.findall(r'<section class="item".*?</section>', page, re.S)]


def _item(part):
    def plain(text):
        return " ".join(unescape(re.sub(r"<[^>]*>", "", text)).split())

    read = Read(part)
    tables = {
        caption: [dict(zip(rows[0], row, strict=True)) for row in rows[1:]] for caption, rows in read.tables.items()
    }
    unknown = re.search(r'<p class="unknown">(.*?)</p>', part, re.S)
    return Item(
        plain(re.search(r"</span>(.*?)<small>", part, re.S)[1]),
        [plain(text) for text in re.findall(r"<p>(.*?)</p>", part, re.S)],
        tables,
        plain(unknown[1]).partition(": ")[2].rstrip(".") if unknown else "",
    )


def test_the_items_stand_in_order_and_say_what_is_not_known(found, facts):
    labels = dict(zip(found.models[0].subjects, found.models[0].labels.tolist(), strict=True))
    listed = items(found.results, facts, [], labels)
    assert len(listed) == 15 and listed[0].title.startswith("Flow") and listed[14].title.startswith("Explain")
    assert all(item.unknown for item in listed)
    assert "1 subject of the table had no recurrence" in " ".join(listed[0].known)
    assert "imaging to treatment" in listed[3].unknown
    held = [int(row["held out"]) for row in listed[1].tables["Labels by fold"]]
    assert sum(held) == found.results["subjects"]
    assert facts.runs[0].folds["digest"] in " ".join(listed[2].known)


def test_the_flow_names_whom_it_left_out_and_says_where_it_cannot_know(found, facts):
    known = items(found.results, facts, [], {})[0].known
    assert any("left out for errors in their files: torn" in line for line in known)
    data = {key: value for key, value in facts.runs[0].data.items() if key != "invalid"}  # of an older run
    old = replace(facts, runs=(replace(facts.runs[0], data=data), *facts.runs[1:]))
    flow = items(found.results, old, [], {})[0]
    assert not any("errors in their files" in line for line in flow.known)
    assert "errors in their files" in flow.unknown


def test_two_names_of_one_exam_are_reported(found, facts):
    data = json.loads(json.dumps(facts.runs[0].data))
    first, second = list(data["subjects"])[:2]
    data["subjects"][second]["early"] = data["subjects"][first]["early"]
    twins = replace(facts, runs=(replace(facts.runs[0], data=data), *facts.runs[1:]))
    assert f"{first} = {second}" in " ".join(items(found.results, twins, [], {})[2].known)
    assert "No two subjects" in " ".join(items(found.results, facts, [], {})[2].known)


def test_how_the_folds_were_drawn_is_told(found, facts):
    def told(column=None, **folds):
        first = facts.runs[0]
        cohort = [{**row, **({column: "x"} if column else {})} for row in first.cohort]
        changed = replace(facts, runs=(replace(first, folds={**first.folds, **folds}, cohort=cohort), *facts.runs[1:]))
        labels = {row["subject"]: int(row["recurrence"]) for row in first.cohort}
        found_items = items(found.results, changed, [], labels)
        item = found_items[2]
        return " ".join(item.known), item.unknown, found_items[1].tables["Labels by fold"], found_items[4]

    names = list(facts.runs[0].folds["held_out_in"])
    known, unknown, rows, acquisition = told()
    assert "2 folds, stratified by outcome and, within it, by site" in known and "taken to be a patient" in unknown
    assert "scanners: the cohort table has no column scanner" in acquisition.unknown
    known, unknown, rows, _ = told("patient", stratify=["her2", "age"])
    assert "jointly by outcome and her2, age" in known and "one patient (column patient)" in known and not unknown
    known, _, rows, acquisition = told(
        "scanner",
        split=True,
        held_out_in={name: place % 3 - 1 if place % 3 < 2 else -1 for place, name in enumerate(names)},
    )
    assert "8 subjects are trained on and never held out" in known and [row["fold"] for row in rows] == ["0"]
    assert rows[0]["held out"] == "4" and rows[0]["trained on"] == "8"
    assert "Subjects by scanner: x 12. One only." in acquisition.known


def test_a_run_without_its_smaller_files_still_has_a_report(found, facts, drawn):
    bare = tuple(
        replace(run, folds={}, data={}, environment={}, masks=(), cohort=(), histories={}, weights=None, seconds=None)
        for run in facts.runs
    )
    poor = replace(facts, runs=bare, panels=(), chosen={})
    assert subgroup_scores(found.models, (), "recurrence") == []
    shown = page(found, poor, replace(drawn, subgroups=[]), Viewer())
    assert "no column site" in shown and "No viewer" in shown and len(shown) < 1_500_000  # no NiiVue


def test_subgroups_hold_each_subject_once_and_score_as_scikit_learn(found, facts):
    cohort, model = facts.runs[0].cohort, found.models[2]
    scores = subgroup_scores([model], cohort, "recurrence", samples=QUICK)
    assert {score["column"] for score in scores} == {"site", "age", "her2"} and scores[0]["column"] == "site"
    for column in ("site", "age", "her2"):
        assert sum(score["subjects"] for score in scores if score["column"] == column) == len(model.subjects)
    north = [row["subject"] in model.subjects and row["site"] == "north" for row in cohort]
    index = [model.subjects.index(row["subject"]) for row, inside in zip(cohort, north, strict=True) if inside]
    score = next(score for score in scores if score["group"] == "north")
    if 0 < score["positives"] < score["subjects"]:
        assert score["auc"]["value"] == pytest.approx(roc_auc_score(model.labels[index], model.probabilities[index]))


def test_gaps_between_groups_are_the_largest_less_the_smallest(found, facts):
    cohort, model = facts.runs[0].cohort, found.models[2]
    gaps = {gap["column"]: gap for gap in group_gaps([model], cohort, "recurrence", samples=QUICK)}
    assert set(gaps) == {"site", "age", "her2"} and gaps["site"]["groups"] == 2
    values = {row["subject"]: row["site"] for row in cohort}
    each = {"sensitivity": {}, "specificity": {}}
    for name, label, p, fold in zip(model.subjects, model.labels, model.probabilities, model.folds, strict=True):
        right = (p >= model.thresholds[int(fold)]) == label
        each["sensitivity" if label else "specificity"].setdefault(values[name], []).append(right)
    for score, groups in each.items():
        means = [np.mean(rights) for rights in groups.values()]
        expected = max(means) - min(means) if len(means) == 2 else None
        assert gaps["site"][score]["value"] == pytest.approx(expected)
        assert len(report_tables.gap_table(list(gaps.values()))) == 3
    labels, ones, codes = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.2, 0.8]), np.array([0, 0, 1, 1])
    half = np.full(4, 0.5)
    assert gap("sensitivity", 2, labels, ones, half, codes) == 0
    assert gap("sensitivity", 2, labels, ones, half, 0 * codes) is None  # nobody in the other group
    assert gap("sensitivity", 2, labels, 1 - ones, half, labels) is None  # one group has nobody of class 1
    assert gap("specificity", 2, labels, np.array([0.1, 0.9, 0.7, 0.8]), half, codes) == 1


def test_columns_that_make_no_groups_make_none():
    assert groups_of({"a": "x", "b": "x"}) == {}
    assert groups_of({str(i): f"name {i}" for i in range(9)}) == {}
    assert groups_of({"a": "1", "b": "0", "c": ""}) == {"0": ["b"], "1": ["a"], "not known": ["c"]}
    split = groups_of({str(i): str(i) for i in range(10)})
    assert split == {"up to 4.5": list("01234"), "above 4.5": list("56789")}


# --- the viewer's volumes


def unpacked(code):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(code)))


def test_a_packed_map_lies_where_from_cube_puts_it():
    """A map on its own grid and affine is, at each cell's centre in mm, what the patient's grid has there."""
    affine = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])  # turned by 90 degrees
    frame = CubeFrame((40, 30, 20), (1.5, 2.0, 3.0), 24, 2.5)
    cells = np.zeros((6, 6, 6))
    cells[4, 1, 3] = 1.0
    image = unpacked(packed(np.round(255 * cells), cells_affine(frame, affine, 6), slope=1 / 255))
    assert image.get_fdata() == pytest.approx(cells, abs=1e-6) and image.header["qform_code"] == 1
    centre = image.affine @ [4, 1, 3, 1]
    on_patient = from_cube(cells, frame)
    peak = np.array(np.unravel_index(on_patient.argmax(), on_patient.shape))
    apart = np.linalg.norm((affine @ [*peak, 1])[:3] - centre[:3])
    assert apart <= np.linalg.norm(frame.zooms) / 2
    edge = frame.affine(affine) @ [-0.5, -0.5, -0.5, 1]  # the cube's corner is the map's corner
    assert image.affine @ [-0.5, -0.5, -0.5, 1] == pytest.approx(edge)


def test_packing_is_the_same_every_time_and_keeps_a_mask():
    mask = np.zeros((5, 5, 5), bool)
    mask[1, 2, 3] = True
    assert packed(mask, np.eye(4)) == packed(mask, np.eye(4))
    assert np.array_equal(unpacked(packed(mask, np.eye(4))).get_fdata(), mask)


def test_the_peak_is_a_cells_centre():
    cells = np.zeros((4, 4, 4))
    cells[3, 0, 1] = 1
    assert peak_of(cells) == pytest.approx((0.875, 0.125, 0.375))


def test_the_viewers_subjects_are_chosen_by_rule(folders, facts, found):
    chosen = facts.chosen
    mass = {row["subject"]: float(row["mass_in_mask"]) for row in read_rows(folders["guided"] / "attention.csv")}
    ranked = sorted(mass, key=lambda name: (-mass[name], name))
    for place, what in ((0, "best"), (len(ranked) // 2, "median"), (-1, "worst")):
        assert f"{what} map of guided" in chosen[ranked[place]]
    model = next(model for model in found.models if model.name == "guided")
    said = dict(zip(model.subjects, zip(model.labels, model.probabilities, strict=True), strict=True))
    wrong = {name for name, (label, p) in said.items() if (p >= 0.5) != label}
    assert {name for name, why in chosen.items() if any(" by guided" in reason for reason in why)} == wrong
    assert len(wrong) == 2
    assert list(chosen)[0] == ranked[0] and set(chosen) == wrong | {ranked[0], ranked[len(ranked) // 2], ranked[-1]}
    only_box = {"mask-only": folders["mask-only"]}
    assert chosen_subjects(only_box, [facts.runs[1]]) == {}


def test_the_viewer_stops_at_its_size_and_says_who_is_left_out(folders, facts, found, drawn):
    whole = viewer(folders, facts, 1e9)
    assert len(whole.cases) == len(facts.chosen) and whole.models == ("no-mask", "guided") and not whole.left_out
    part = viewer(folders, facts, whole.cases[0].size + whole.cases[1].size)
    assert len(part.cases) == 2 and part.left_out == tuple(list(facts.chosen)[2:])
    shown = page(found, facts, drawn, part)
    assert f"{len(part.left_out)} more were chosen and left out" in shown and part.left_out[0] in shown
    none = page(found, facts, drawn, viewer(folders, facts, 10))
    assert "leaves no room" in none and "cases" not in Read(none).scripts
    left = room(found, facts, drawn, 5e6)
    assert len(page(found, facts, drawn, viewer(folders, facts, left)).encode()) <= 5e6


def test_exams_that_are_gone_are_named(folders, facts, found, drawn, tmp_path, monkeypatch):
    from mgkeras.report import collect as report_files

    def lost(run, subject, settings):
        raise report_files.ExamError("expected a NIfTI file. Received: nothing")

    monkeypatch.setattr(report_files, "run_exam", lost)
    gone = viewer(folders, facts, 1e9)
    assert not gone.cases and set(gone.unread) == set(facts.chosen)
    assert "the exams could not be read (expected a NIfTI file" in page(found, facts, drawn, gone)


# --- the command


def test_the_command_writes_one_file(runs, tmp_path):
    out = tmp_path / "deep" / "report.html"
    options = ["--no-probe", "--samples", "100", "--clinical", "age", "--out", str(out)]
    done = CliRunner().invoke(command, [*map(str, runs), *options], catch_exceptions=False)
    assert done.exit_code == 0 and str(out) in done.output and list(out.parent.iterdir()) == [out]
    read = Read(out.read_text(encoding="utf-8"))
    assert {"evaluation", "cases"} <= set(read.scripts)
    auc = json.loads(read.scripts["evaluation"])["models"][2]["pooled"]["auc"]["value"]
    assert read.paths["models/2/pooled/auc/value"] == layout.text(auc)


def test_the_command_probes_first_unless_told_not_to(runs, tmp_path, monkeypatch):
    from mgkeras.cli import report

    asked = []
    monkeypatch.setattr(report, "ask_runs", lambda runs, *_: asked.append(len(runs)))
    monkeypatch.setattr(report, "report_runs", lambda *_, **options: asked.append(options["max_mb"]))
    for flags in (["--max-mb", "3"], ["--no-probe"]):
        done = CliRunner().invoke(command, [*map(str, runs), *flags], catch_exceptions=False)
        assert done.exit_code == 0
    assert asked == [3, 3.0, 15]
    text = CliRunner().invoke(command, ["--help"]).output
    assert all(word in text for word in ("--clinical", "--occlusions", "--max-mb", "Example:"))


def test_the_bundled_viewer_has_its_licence():
    from mgkeras.report.page import ASSETS

    licence = (ASSETS / "niivue-LICENSE.txt").read_text(encoding="utf-8")
    for name in ("BSD 2-Clause", "gl-matrix (MIT)", "fflate (MIT)", "nifti-reader-js (MIT)", "numcodecs (MIT)"):
        assert name in licence


def test_a_report_reads_what_is_scored_and_scores_what_changed(runs, tmp_path, monkeypatch):
    """Of evaluation.json, or of the page itself; an edited page, or a page of other files, is not believed."""
    from mgkeras.evaluation import evaluate as scoring

    page_at, asked = tmp_path / "report.html", []
    options = ["--no-probe", "--samples", "100", "--out", str(page_at), "--evaluation"]
    evaluated = CliRunner().invoke(evaluate_command, [*map(str, runs), *options[:3], "--out", str(tmp_path / "e")])
    assert evaluated.exit_code == 0, evaluated.output
    scored = scoring._scores
    monkeypatch.setattr(scoring, "_scores", lambda *of, **how: (asked.append(of), scored(*of, **how))[1])

    def written(file, folders=runs):
        asked.clear()
        done = CliRunner().invoke(command, [*map(str, folders), *options, str(file)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(Read(page_at.read_text(encoding="utf-8")).scripts["evaluation"]), bool(asked)

    (first, again), kept = written(tmp_path / "e" / "evaluation.json"), tmp_path / "edited.json"
    assert not again and first == store.read_json(tmp_path / "e" / "evaluation.json")
    text = (tmp_path / "e" / "evaluation.json").read_text(encoding="utf-8")
    kept.write_text(text.replace('"samples": 100', '"samples": 101'), encoding="utf-8")
    assert written(kept) == (first, False)  # the page's own
    page_at.unlink()
    assert written(kept) == (first, True)  # the same numbers, scored again


def test_a_report_of_other_runs_is_not_written_over(runs, tmp_path):
    out = tmp_path / "report.html"
    words = ["--no-probe", "--samples", "100", "--out", str(out)]
    for text in ("my notes", None):  # a file that is no report; then a report of one run
        if text:
            out.write_text(text)
        else:
            done = CliRunner().invoke(command, [str(runs[0]), *words, "--overwrite"], catch_exceptions=False)
            assert done.exit_code == 0, done.output
        before = out.read_bytes()
        found = CliRunner().invoke(command, [*map(str, runs), *words])
        assert isinstance(found.exception, InputError) and "--overwrite" in str(found.exception)
        assert out.read_bytes() == before
