"""`mgkeras cohort check`: problems, counts and planned folds are told, and the sheet shows every subject."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from mgkeras.check.sheet import MOST_BYTES, Card, room_for, write_sheet
from mgkeras.check.strip import GAP, PANELS, cut_of, outline_of, plane_of, strip_of
from mgkeras.data.cohort import read_cohort
from mgkeras.data.volume import Volume, load_volume
from mgkeras.runs.folds import assign_folds

try:
    from mgkeras.cli.cohort import command  # installed
    from mgkeras.cli.pool import work_on
except ModuleNotFoundError:
    from cli.cohort import command  # a bare checkout
    from cli.pool import work_on


def run(*words):
    return CliRunner().invoke(command, ["check", *map(str, words)])


def copied(phantom, folder, change=lambda rows: None):
    """A cohort of the phantom's files with their true masks, its rows changed."""
    folder.mkdir(exist_ok=True)
    with open(phantom, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["mask"] = str(phantom.parent / "truth" / f"{row['subject']}.nii.gz")
        row |= {column: str(phantom.parent / row[column]) for column in ("pre", "early", "late")}
    change(rows)
    with open(folder / "cohort.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "cohort.csv"


def cards_of(page):
    """The cards' HTML, a text a subject."""
    return re.split(r'(?=<article class="card )', page)[1:]


def picture_of(card):
    return imread(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", card)[1])), "jpg")


def test_a_cohort_without_errors_is_counted_and_drawn(phantom, tmp_path):
    table = copied(phantom, tmp_path)
    result = run(table, "--outcome", "recurrence", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "12 subjects; 0 errors, 0 warnings" in result.output and "mask 12" in result.output
    subjects = read_cohort(table, "recurrence").subjects
    ones = sum(subject.label for subject in subjects)
    assert re.search(rf"all +12 +{ones} / {12 - ones} / 0", result.output)
    north = [subject for subject in subjects if subject.site == "north"]
    ones = sum(subject.label for subject in north)
    assert re.search(rf"site north +{len(north)} +{ones} / {len(north) - ones} / 0", result.output)
    page = (tmp_path / "cohort-check.html").read_text("utf-8")
    assert re.findall(r'data-name="([^"]*)"', page) == [subject.name for subject in subjects]
    assert page.count("<img") == 12 and not re.search(r"""(src|href)=["']?(http|//)""", page)
    assert not list(tmp_path.glob(".*")), "a temporary file is left"


@pytest.fixture(scope="module")
def nasty(phantom, tmp_path_factory):
    """The output and the sheet of a cohort with one of each of these in its rows."""
    folder = tmp_path_factory.mktemp("nasty")

    def spoil(rows):
        rows[1]["early"] = "nowhere.nii.gz"
        (folder / "broken.nii.gz").write_bytes(b"\x1f\x8bjunk")
        rows[2]["pre"] = "broken.nii.gz"
        image = nib.load(rows[3]["mask"])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[1:].copy(), image.affine), folder / "cut.nii.gz")
        rows[3]["mask"] = "cut.nii.gz"
        rows[4]["mask"] = ""
        rows[5]["recurrence"] = "maybe"
        rows[6]["subject"] = "<script>alert(1)</script>"
        rows[7]["subject"] = rows[8]["subject"]

    result = run(copied(phantom, folder, spoil), "--outcome", "recurrence", "--jobs", "2", "--out", folder / "s.html")
    return result, (folder / "s.html").read_text("utf-8")


def test_every_problem_is_told_with_line_and_subject(nasty):
    result, _ = nasty
    assert result.exit_code == 1 and "12 subjects; 6 errors" in result.output
    told = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert [line.split(",")[0] for line in told] == [f"error: line {n}" for n in (3, 4, 5, 7, 8, 10)]
    for line, (column, found) in zip(
        told,
        (
            ("early", "nowhere.nii.gz"),
            ("pre", "broken.nii.gz"),
            ("mask", "shape"),
            ("recurrence", "'maybe'"),
            ("subject", "<script>"),
            ("subject", "as in"),
        ),
        strict=True,
    ):
        assert f"column {column}: expected " in line and found in line.partition("Received: ")[2]


def test_the_sheet_shows_what_can_be_shown_and_escapes_names(nasty):
    _, page = nasty
    assert "<script>alert" not in page and page.count("<article") == 12
    cards = cards_of(page)
    assert ["not read" in card for card in cards] == [number == 1 for number in range(12)]
    assert ['class="card error"' in card for card in cards] == [n in (1, 2, 3, 5, 6, 8) for n in range(12)]
    assert [card.count("<path") for card in cards] == [3, 0, 1, 0, 0, 3, 3, 3, 3, 3, 3, 3]
    picture = picture_of(cards[2])  # pre cannot be read: early alone
    panel = (picture.shape[1] - 3 * GAP) // 4
    means = [picture[:, place * (panel + GAP) :][:, :panel].mean() for place in range(4)]
    assert means[1] > 20 and max(means[0], *means[2:]) < 3
    assert "nowhere.nii.gz" in cards[1]


def test_folds_are_those_of_fit_without_the_subjects_that_it_cannot_use(phantom, tmp_path):
    def spoil(rows):
        rows[0]["recurrence"] = ""
        rows[1]["subject"] = "a b"

    table = copied(phantom, tmp_path, spoil)
    result = run(
        table,
        "--outcome",
        "recurrence",
        "--folds",
        "2",
        "--seed",
        "3",
        "--stratify",
        "her2",
        "--no-sheet",
        "--jobs",
        "1",
    )
    assert result.exit_code == 1 and not (tmp_path / "cohort-check.html").exists()
    assert "2 folds of 10 subjects, seed 3, balanced by recurrence and her2" in result.output
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))[2:]
    (tmp_path / "rest.csv").write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")
    subjects = read_cohort(tmp_path / "rest.csv", "recurrence").subjects
    fold_of = assign_folds(subjects, 2, 3, ["her2"])
    for fold in range(2):
        mine = [subject for subject in subjects if fold_of[subject.name] == fold]
        ones = sum(subject.label for subject in mine)
        her2 = [sum(subject.covariates["her2"] == value for subject in mine) for value in ("1", "0", "")]
        cells = [fold, len(mine), ones, len(mine) - ones, *her2]
        if not any(subject.covariates["her2"] == "" for subject in subjects):
            cells.pop()
        assert re.search(r"^" + " +".join(map(str, cells)) + r"\b", result.output, re.MULTILINE), result.output


def test_too_few_of_a_class_for_the_folds_is_an_error(phantom, tmp_path):
    result = run(copied(phantom, tmp_path), "--outcome", "recurrence", "--folds", "9", "--no-sheet", "--jobs", "1")
    assert result.exit_code == 1 and "9 or more subjects of class 1" in result.output


def test_one_exam_under_two_names_is_told(phantom, tmp_path):
    def spoil(rows):
        rows[3] |= {column: rows[0][column] for column in ("pre", "early", "late", "mask")}
        rows[0]["recurrence"], rows[3]["recurrence"] = "0", "1"

    table = copied(phantom, tmp_path, spoil)
    result = run(table, "--outcome", "recurrence", "--no-sheet", "--jobs", "2")
    assert result.exit_code == 1 and "2 errors" in result.output
    assert "whose recurrence is 0 and not 1" in result.output and "one label for one exam" in result.output
    result = run(table, "--outcome", "recurrence", "--no-sheet", "--jobs", "1", "--predict")
    assert result.exit_code == 0 and "0 errors, 2 warnings" in result.output


def labels(folder, text):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder / "labels.csv"


def test_labels_alone_are_checked_and_planned(tmp_path):
    rows = [f"S{n},{n % 2},{n // 2 % 2},{'a' if n < 30 else 'b'}" for n in range(41)]
    table = labels(tmp_path, "\n".join(["subject,her2,pcr,site", *rows]) + "\n")
    result = run(table, "--labels-only", "--folds", "5", "--outcome", "her2", "--stratify", "pcr")
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
    apart = dict(
        zip(
            *(
                re.split(r"  +", next(line for line in result.output.splitlines() if line.startswith(start)))
                for start in ("fold ", "apart ")
            ),
            strict=True,
        )
    )
    assert all(int(apart[name]) <= 1 for name in ("her2 1", "her2 0", "pcr 1", "pcr 0"))
    both = run(table, "--labels-only", "--folds", "5", "--stratify", "pcr,her2")
    assert both.exit_code == 0 and "balanced by pcr and her2" in both.output
    bare = run(table)
    assert bare.exit_code == 1 and "with --labels-only" in bare.output and "column early" in bare.output


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--outcome", "none"), 1, "column none: expected a column of this name. Received: columns her2, pcr"),
        (("--folds", "2"), 1, "2 columns could be one: her2, pcr"),
        (("--folds", "2", "--outcome", "her2", "--stratify", "grade"), 1, "Received: grade"),
        (("--folds", "1"), 2, "--folds"),
        (("--out", "sheet.html"), 2, "draws no sheet"),
        (("--stratify", "pcr"), 2, "add --folds"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, code, told):
    table = labels(tmp_path, "subject,her2,pcr\na,1,0\nb,0,1\nc,1,1\nd,0,0\n")
    result = run(table, "--labels-only", *options)
    assert result.exit_code == code and told in result.output
    refused = run(table, "--out", "sheet.pdf")
    assert refused.exit_code == 2 and "must end in .html" in refused.output


def volumes(shape=(40, 60, 24), zooms=(1.0, 1.0, 2.0)):
    """Pre, early and mask: a tumour that enhances in slices 5 to 7 of z, at the patient's right and front."""
    rng = np.random.default_rng(0)
    pre = 100 + 5 * rng.standard_normal(shape)
    mask = np.zeros(shape, bool)
    mask[30:36, 45:55, 5:8] = True
    affine = np.diag([*zooms, 1.0])
    return Volume(pre.astype(np.float32), affine), Volume((pre + 200 * mask).astype(np.float32), affine), mask


def test_a_strip_shows_the_tumours_slice_on_one_scale_and_its_outline_where_it_is():
    pre, early, mask = volumes()
    strip = strip_of(pre, early, mask, 10**6)
    picture = imread(io.BytesIO(strip.jpeg), "jpg").astype(float)
    assert picture.shape == (strip.height, strip.width) and strip.marks == ("R", "L")
    assert strip.width == 4 * strip.panel + 3 * GAP and strip.height / strip.panel == pytest.approx(60 / 40, rel=0.02)
    panels = [picture[:, left : left + strip.panel] for left in strip.lefts]
    scale = strip.panel / 40
    rows, columns = (slice(round(a * scale) + 2, round(b * scale) - 2) for a, b in ((5, 15), (4, 10)))  # right, front
    inside = [panel[rows, columns].mean() for panel in panels]
    outside = [panel[round(40 * scale) :, round(20 * scale) :].mean() for panel in panels]
    assert abs(inside[0] - outside[0]) < 5 and min(a - b for a, b in zip(inside[1:], outside[1:], strict=True)) > 80
    assert abs(outside[0] - outside[1]) < 3  # pre and early have one scale
    assert strip.paths[0] == "" and len(strip.paths) == len(PANELS)
    for path in strip.paths[1:]:
        points = np.array([[float(n) for n in point.split()] for point in re.findall(r"[\d.]+ [\d.]+", path)])
        assert np.allclose(points.min(0), (4 * scale, 5 * scale), atol=0.1 * scale + scale / 2)
        assert np.allclose(points.max(0), (10 * scale, 15 * scale), atol=0.1 * scale + scale / 2)


def test_a_strip_of_a_tumour_in_another_slice_is_in_the_projection_and_noise_stays_dark():
    pre, early, _ = volumes()
    strip = strip_of(pre, early, None, 10**6)
    picture = imread(io.BytesIO(strip.jpeg), "jpg").astype(float)
    cut, projected = (picture[:, left : left + strip.panel] for left in strip.lefts[2:])
    assert cut.max() < 90 and projected.max() > 220 and set(strip.paths) == {""} and "no mask" in strip.caption


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_strip_of_voxels_that_are_not_finite_is_drawn(bad):
    pre, early, mask = volumes()
    early.data[:, :10] = bad
    assert strip_of(pre, early, mask, 10**6).jpeg.startswith(b"\xff\xd8")
    flat = Volume(np.zeros_like(pre.data), pre.affine)
    assert strip_of(flat, flat, np.ones_like(mask), 10**6).paths[1] == ""


def test_a_thousand_subjects_make_a_sheet_of_twenty_megabytes_at_most(tmp_path):
    rng = np.random.default_rng(1)
    shape = (200, 200, 4)
    pre, early = (Volume(rng.gamma(2, 50, shape).astype(np.float32), np.diag([1.0, 1.0, 3.0, 1.0])) for _ in range(2))
    mask = rng.random(shape) < 0.0  # noise alone is the hardest to compress
    mask[80:120, 80:120] = True
    strips = {count: strip_of(pre, early, mask, room_for(count)) for count in (10, 1000)}
    assert len(strips[1000].jpeg) <= room_for(1000) and strips[1000].panel < strips[10].panel
    facts = (("site", "a"), ("recurrence", "1"))
    page = write_sheet(tmp_path / "s.html", "many", (Card(f"S{n}", facts, (), strips[1000]) for n in range(1000)))
    assert page.stat().st_size <= MOST_BYTES


def test_cards_are_taken_one_by_one_and_a_sheet_that_fails_leaves_nothing(tmp_path):
    def cards():
        yield Card("a", (), (("error", "x"),), None)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_sheet(tmp_path / "s.html", "t", cards())
    assert list(tmp_path.iterdir()) == []


def test_the_outline_is_around_the_mask_and_closed():
    mask = np.zeros((10, 20), bool)
    mask[2:5, 10:20] = True  # to the border
    (line,) = outline_of(mask)
    assert (line[0] == line[-1]).all()
    assert np.allclose(line.min(0), (10 / 20, 2 / 10)) and np.allclose(line.max(0), (20 / 20, 5 / 10))
    assert outline_of(~mask | mask) == outline_of(mask & ~mask) == []


def test_the_slice_is_the_masks_largest_and_the_same_for_image_and_mask(phantom):
    subject = read_cohort(phantom, "recurrence").subjects[0]
    early = load_volume(subject.early)
    mask = load_volume(phantom.parent / "truth" / f"{subject.name}.nii.gz").data > 0
    image, outline = (cut_of(data, plane_of(early, mask)) for data in (early.data, mask))
    assert image.shape == outline.shape
    axis = int(np.argmax(np.round(early.zooms, 3)))
    assert outline.sum() == mask.sum(tuple({0, 1, 2} - {axis})).max()
    assert image[outline].mean() > 1.2 * image[~outline].mean()


def test_a_process_that_dies_loses_its_own_task_alone():
    tasks = ["1 + 1", "2 + 2", "__import__('os')._exit(9)", "4 + 4", "5 + 5", "6 + 6"]  # as when memory runs out
    found = list(work_on(tasks, eval, 2, lambda task, why: (task, why)))
    assert found[:2] + found[3:] == [2, 4, 8, 10, 12] and found[2][0] == tasks[2] and "--jobs 1" in found[2][1]
    assert list(work_on(["3"], eval, 8, None)) == [3]


def test_the_assets_are_in_the_package():
    folder = Path(__import__("mgkeras.report").report.__file__).parent / "assets"
    assert {"check.html", "check_card.html", "check.css", "check.js"} <= {path.name for path in folder.iterdir()}


ACTIONS = """<script>{
const shown = () => [...document.querySelectorAll(".card:not([hidden])")].map((card) => card.dataset.name).join();
const type = (id, value) => { const input = document.getElementById(id); input.value = value; input.dispatchEvent(new
Event("input")); }; const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true
})); const told = [shown()];
press("ArrowRight"); told.push(shown()); press("ArrowRight"); told.push(shown()); press("ArrowLeft");
type("search", "s3"); told.push(shown()); type("state", "bad"); told.push(shown()); type("state", "error");
told.push(shown()); type("search", ""); type("state", ""); type("fact", "site a|b"); told.push(shown());
press("m"); told.push(document.body.className + getComputedStyle(document.querySelector(".strip svg")).display);
document.querySelector(".strip").click(); told.push(document.querySelector(".card").className);
document.body.textContent = JSON.stringify(told);
}</script>"""  # noqa: E501


@pytest.mark.skipif(not shutil.which("chromium"), reason="the sheet is not opened: no chromium (apt install chromium)")
def test_the_sheets_controls_work_in_a_browser(tmp_path):
    strip = strip_of(*volumes(), 10**4)
    state = {3: (("warning", "x"),), 31: (("error", "x"), ("warning", "y"))}
    cards = (Card(f"S{n}", (("site", "a|b" if n % 10 else "a"),), state.get(n, ()), strip) for n in range(40))
    page = write_sheet(tmp_path / "s.html", "t", cards)
    (tmp_path / "acted.html").write_text(page.read_text("utf-8").replace("</body>", ACTIONS + "</body>"), "utf-8")
    found = subprocess.run(
        [
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            f"--user-data-dir={tmp_path / 'profile'}",
            (tmp_path / "acted.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    told = json.loads(html.unescape(re.search(r"<body[^>]*>(.*?)</body>", found, re.DOTALL)[1]))
    names = [f"S{n}" for n in range(40)]
    assert told[:3] == [",".join(names[:24]), ",".join(names[24:]), ",".join(names[24:])]  # no page after the last
    assert told[3:6] == ["S3,S30,S31,S32,S33,S34,S35,S36,S37,S38,S39", "S3,S31", "S31"]
    assert told[6] == ",".join([name for name in names if not name.endswith("0")][:24])
    assert told[7:] == ["plainnone", "card fine large"]
