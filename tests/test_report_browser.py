"""The report in a real browser, from the disk: it draws, its controls work, it asks for nothing, it fits screens."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import reporting
from matplotlib.image import imread

from mgkeras.evaluation.evaluate import evaluate, shared
from mgkeras.report.collect import packed, report_facts, viewer
from mgkeras.report.page import draw, page
from mgkeras.scores.attention import enlarge

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
WANTING = [
    what
    for what, there in (
        ("chromium (apt install chromium)", CHROMIUM),
        ("chromedriver (apt install chromium-driver)", DRIVER),
    )
    if not there
]
try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait
except ImportError:
    WANTING.append("selenium (pip install selenium)")
pytestmark = pytest.mark.skipif(bool(WANTING), reason=f"the report is not opened in a browser: no {', '.join(WANTING)}")

QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
SOFTWARE = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
SLOW = 60  # seconds that a loaded machine may need to draw with the processor


@pytest.fixture(scope="module")
def written(tmp_path_factory, phantom, small):
    """report.html of three probed runs, its evaluation's results and its viewer's subjects."""
    folder = tmp_path_factory.mktemp("browser")
    found = evaluate(reporting.make_runs(folder / "runs", phantom, small), samples=30)
    found = replace(found, results=reporting.probed(found.results))
    folders = {model["name"]: Path(model["folder"]) for model in found.results["models"] if "folder" in model}
    facts = report_facts(folders)
    path = folder / "report.html"
    path.write_text(page(found, facts, draw(found, facts), viewer(folders, facts, 1e9)), encoding="utf-8")
    return path, found.results, viewer(folders, facts, 1e9)


def opened(folder: Path, *flags: str):
    """A browser with an empty profile that records what it asks for."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*QUIET, *flags, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(DRIVER))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = opened(tmp_path_factory.mktemp("profile"), *SOFTWARE)
    yield found
    found.quit()


@pytest.fixture
def desktop(browser, written):
    """The page at 1280 x 800, light, with the viewer's first picture drawn."""
    show(browser, written[0])
    return browser


def show(browser, path: Path, width: int = 1280, height: int = 800, scheme: str = "light") -> None:
    browser.get_log("browser"), browser.get_log("performance")  # of earlier pages
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {
            "features": [
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ]
        },
    )
    browser.get(path.as_uri())
    until_shown(browser)


def until_shown(browser, what: str = "") -> None:
    """Waits until the viewer's picture is complete, for the subject and model named 'SUBJECT/MODEL'."""
    WebDriverWait(browser, SLOW).until(
        lambda b: (shown := js(b, "return document.documentElement.dataset.shown")) and what in shown
    )
    js(browser, "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def js(browser, code: str, *arguments):
    return browser.execute_script(code, *arguments)


def choose(browser, control: str, value) -> None:
    """As a person would: sets a control and lets the page know."""
    js(
        browser,
        """const input = document.getElementById(arguments[0]);
        if (input.type === "checkbox") input.checked = arguments[1]; else input.value = arguments[1];
        input.dispatchEvent(new Event("input")); input.dispatchEvent(new Event("change"));""",
        control,
        value,
    )


def canvas(browser) -> np.ndarray:
    """(rows, columns, 3) of what the viewer draws, in [0, 1]; a screenshot shows the same, in seconds."""
    code = "window.mgkerasViewer.nv.drawScene(); return document.getElementById('canvas').toDataURL()"
    return imread(io.BytesIO(base64.b64decode(js(browser, code).split(",")[1])))[..., :3]


def test_the_page_opens_from_the_disk_without_errors_and_asks_for_nothing(desktop):
    assert [entry for entry in desktop.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in desktop.get_log("performance")]
    asked = {
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    }
    assert asked and {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert [url for url in asked if url.startswith("file")] == [js(desktop, "return location.href")]


def test_the_viewer_draws_the_exam(desktop):
    drawn = canvas(desktop)
    screen = imread(io.BytesIO(desktop.find_element("id", "canvas").screenshot_as_png))[..., :3]
    rows = len(screen)  # a pixel less where the page puts the canvas between two
    assert drawn.std() > 0.05 and len(drawn) - rows in (0, 1)
    assert min(np.abs(screen - part).mean() for part in (drawn[:rows], drawn[-rows:])) < 0.02
    assert desktop.find_element("id", "no-viewer").is_displayed() is False


def test_the_sliders_and_choosers_change_the_picture(desktop, written):
    names = [case.name for case in written[2].cases]
    before = canvas(desktop)
    choose(desktop, "map-opacity", 0)
    without_map = canvas(desktop)
    choose(desktop, "mask-opacity", 0)
    bare = canvas(desktop)
    assert np.abs(before - without_map).max() > 0.2 and np.abs(without_map - bare).max() > 0.2
    choose(desktop, "map-opacity", 75)
    with_map = canvas(desktop)
    assert np.abs(bare - with_map).max() > 0.2
    desktop.find_element("id", "next").click()
    until_shown(desktop, f"{names[1]}/")
    assert names[1] in desktop.find_element("id", "said").text
    other = canvas(desktop)
    assert np.abs(with_map - other).max() > 0.2
    choose(desktop, "model", "no-mask")
    until_shown(desktop, "/no-mask")
    assert np.abs(other - canvas(desktop)).max() > 0.2
    choose(desktop, "planes", "axial")
    one_plane = canvas(desktop)
    choose(desktop, "slice", 2)
    assert np.abs(one_plane - canvas(desktop)).max() > 0.2
    desktop.find_element("id", "previous").click()
    until_shown(desktop, f"{names[0]}/")


def test_the_patients_right_is_at_the_left_and_anterior_on_top(desktop, written):
    """The mask, filled and alone, lies on the screen where radiologists expect its place in the patient."""
    choose(desktop, "planes", "axial")
    choose(desktop, "filled", True)
    choose(desktop, "map-opacity", 0)
    for place, case in enumerate(written[2].cases):
        choose(desktop, "subject", place)
        until_shown(desktop, f"{case.name}/")
        choose(desktop, "mask-opacity", 0)
        bare = canvas(desktop)
        choose(desktop, "mask-opacity", 100)
        rows, columns = np.nonzero(np.abs(canvas(desktop) - bare).max(axis=2) > 0.2)
        height, width = bare.shape[:2]
        side = min(height, width)
        across = 0.5 - (columns.mean() - width / 2) / side  # shares of the cube: 1 is the patient's right
        upward = 0.5 - (rows.mean() - height / 2) / side
        assert across == pytest.approx(case.centre[0], abs=0.06) and upward == pytest.approx(case.centre[1], abs=0.06)


def test_the_map_on_screen_is_the_map_enlarged_as_the_scores_have_it(desktop, written):
    """The viewer's own voxels against scores.attention.enlarge, which Figure 3 uses."""
    case = written[2].cases[0]
    cells = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(case.maps["guided"]))).get_fdata()
    slow = enlarge((cells / np.abs(cells).max()).astype(np.float32), case.side)
    shown = js(desktop, "return Array.from(window.mgkerasViewer.nv.volumes[1].img)")
    root = np.array(shown).reshape((case.side,) * 3, order="F")
    assert np.abs(np.sign(root) * root**2 - slow).max() < 0.01  # the root is stored


def test_evidence_for_is_warm_and_evidence_against_is_cool(browser, written, tmp_path):
    """Each pixel that the map changes, against the map's sign at that voxel; at 0 nothing is drawn."""
    case = written[2].cases[0]
    halves = np.zeros((6, 6, 6), np.float32)
    halves[:2], halves[4:] = 1, -0.8  # the patient's right is against, the left for; the middle says nothing
    page_of = written[0].read_text(encoding="utf-8")
    own = packed(np.round(127 * halves), np.eye(4), dtype=np.int8, slope=1 / 127)
    assert case.maps["guided"] in page_of
    (tmp_path / "r.html").write_text(page_of.replace(case.maps["guided"], own), encoding="utf-8")
    show(browser, tmp_path / "r.html")
    choose(browser, "planes", "axial")
    choose(browser, "mask-opacity", 0)
    choose(browser, "map-opacity", 0)
    bare = canvas(browser)
    choose(browser, "map-opacity", 100)
    change = canvas(browser) - bare
    height, width = bare.shape[:2]
    edge = (width - min(height, width)) // 2
    change = change[20:-20, edge : width - edge]
    drawn = np.abs(change).max(axis=2) > 0.05
    warm, cool = change[..., 0] - change[..., 2] > 0.15, change[..., 2] - change[..., 0] > 0.15
    third = change.shape[1] // 3
    assert warm[:, -third + 15 :].mean() > 0.9 and not cool[:, -third:].any()  # the patient's left is at the right
    assert cool[:, : third - 15].mean() > 0.9 and not warm[:, :third].any()
    middle = slice(change.shape[1] // 2 - 15, change.shape[1] // 2 + 15)
    assert drawn[:, middle].mean() < 0.2  # the cross and the letters


def test_everything_can_be_reached_and_worked_by_keyboard(desktop):
    slider = desktop.find_element("id", "map-opacity")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert desktop.find_element("id", "map-opacity-said").text == "76 %"
    desktop.find_element("id", "next").send_keys(Keys.ENTER)
    assert js(desktop, "return document.getElementById('subject').value") == "1"
    reached = js(
        desktop,
        """return [...document.querySelectorAll("button, select, input, summary, .wide, canvas")]
        .filter(node => node.tabIndex < 0).length""",
    )
    assert reached == 0


def test_the_tables_on_screen_are_those_of_evaluation_json(desktop, written):
    shown = js(
        desktop,
        """return Object.fromEntries([...document.querySelectorAll("[data-path]")]
        .map(node => [node.dataset.path, node.textContent]))""",
    )
    embedded = js(desktop, "return JSON.parse(document.getElementById('evaluation').textContent)")
    assert embedded == json.loads(json.dumps(shared(written[1]))) and shown
    for path, number in shown.items():
        value = embedded
        for part in path.split("/"):
            value = value[int(part)] if isinstance(value, list) else value[part]
        assert number == f"{value:.2f}"


def luminance(colour: str) -> float:
    """WCAG's relative luminance of 'rgb(r, g, b)'."""
    values = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return float(
        np.dot([c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in values], (0.2126, 0.7152, 0.0722))
    )


COLOURS = """const back = node => { for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor; if (colour !== "rgba(0, 0, 0, 0)") return colour; } };
  return [...document.querySelectorAll("p, li, td, th, small, figcaption, h1, h2, h3, h4, a, button, label, .mark")]
    .filter(node => node.textContent.trim() && node.getClientRects().length && !node.disabled)
    .map(node => [getComputedStyle(node).color, back(node), node.textContent.slice(0, 40)]);"""


def test_light_and_dark_differ_and_both_can_be_read(browser, written):
    papers = []
    for scheme in ("light", "dark"):
        show(browser, written[0], scheme=scheme)
        found = {(ink, paper): words for ink, paper, words in js(browser, COLOURS)}
        for (ink, paper), words in found.items():
            bright, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (scheme, words)  # WCAG AA
        papers.append(luminance(js(browser, "return getComputedStyle(document.body).backgroundColor")))
    assert papers[0] > 0.9 and papers[1] < 0.02


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_screen_is_too_narrow(browser, written, width, scheme):
    show(browser, written[0], width=width, height=844, scheme=scheme)
    js(browser, "for (const part of document.querySelectorAll('details')) part.open = true")
    across, inner = js(browser, "return [document.scrollingElement.scrollWidth, innerWidth]")
    assert across <= inner == width
    spill = "const box = document.querySelector('.top').parentElement; return box.scrollWidth - box.clientWidth"
    assert js(browser, spill) == 0
    outside = js(
        browser,
        """return [...document.querySelectorAll("main *")]
        .filter(node => !node.closest(".wide, .quiet, table, summary, details") && node.getClientRects().length)
        .filter(it => it.getBoundingClientRect().right > innerWidth + 1).map(it => it.outerHTML.slice(0, 80))""",
    )
    assert outside == []


def test_the_findings_fit_one_screen(desktop):
    """The paper's point at a glance: sentences, table, picture and warning, without scrolling."""
    parts = (".headline", ".top", ".strip", ".cautions")
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    bottoms = {part: js(desktop, bottom, part) for part in parts}
    assert max(bottoms.values()) <= 800, bottoms


def test_without_webgl_there_is_a_plain_message_and_the_rest(tmp_path, written):
    browser = opened(tmp_path, "--disable-gpu", "--disable-3d-apis")
    try:
        browser.get(written[0].as_uri())
        assert "needs JavaScript and WebGL 2" in browser.find_element("id", "no-viewer").text
        assert not browser.find_element("id", "viewer").is_displayed()
        assert browser.find_element("css selector", ".top").is_displayed()
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        browser.quit()


def test_print_opens_what_is_folded_and_leaves_the_controls_out(desktop):
    js(desktop, "window.dispatchEvent(new Event('beforeprint'))")
    assert js(desktop, "return document.querySelectorAll('details:not([open])').length") == 0
    js(desktop, "window.dispatchEvent(new Event('afterprint'))")
    assert js(desktop, "return document.querySelectorAll('details[open]').length") == 0
    desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = js(desktop, "return getComputedStyle(document.getElementById('viewer')).display")
    desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden == "none"
