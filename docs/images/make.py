"""Makes the pictures of README and docs from the demo's runs and report. It needs Chromium and `pip install selenium`.

make demo && .venv/bin/python docs/images/make.py [RUNS]      RUNS is the demo's folder, runs/demo
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mgkeras.cli.main import cli
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

import mgkeras
from mgkeras.data.volume import load_volume
from mgkeras.figures.figure3 import EVIDENCE, OUTLINE, PLANES, largest_slice, upright
from mgkeras.figures.slices import show_slice
from mgkeras.phantom.cohort import make_phantom

HERE = Path(__file__).parent
QUALITY = 85  # of WebP, so that the repository stays small
VIEWS = {  # name: page, width, height, where to scroll to
    "report": ("report.html", 1280, 770, ""),
    "report-exams": ("report.html", 1280, 810, "exams"),
    "check-sheet": ("check-sheet.html", 1280, 580, ""),
}


def small(picture: bytes, path: Path, width: int) -> None:
    """Writes a WebP file of at most so many pixels across."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.save(path, quality=QUALITY, method=6)


def new_exam(run: Path, folder: Path) -> bytes:
    """A picture of what guided-context says of a phantom that it was not trained on."""
    make_phantom(folder, 2, 32, 1)
    name = "P0001"
    t1, mask = (load_volume(folder / part) for part in (f"images/{name}_early.nii.gz", f"truth/{name}.nii.gz"))
    found = mgkeras.load_run(run).predict(folder / "images" / f"{name}_early.nii.gz")
    over = load_volume_like(found, folder)
    top = np.abs(over).max()
    figure = Figure((12, 3.8), layout="constrained")
    figure.suptitle(f"P(recurrence) = {found.probability:.2f}, standard deviation over folds {found.spread:.2f}")
    for axes, (plane, (axis, *_)) in zip(figure.subplots(1, 3), PLANES.items(), strict=True):
        cut = largest_slice(mask.data > 0, axis)
        show_slice(axes, t1.data, t1.zooms, cut, plane, cmap="gray")
        weight = np.clip(np.abs(upright(np.take(over, cut, axis))) / top, 0, 0.7)
        lines = [(mask.data > 0, OUTLINE)]
        show_slice(axes, over, t1.zooms, cut, plane, outlines=lines, cmap=EVIDENCE, vmin=-top, vmax=top, alpha=weight)
        axes.set_title(plane)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110)
    return stream.getvalue()


def load_volume_like(found: mgkeras.Prediction, folder: Path) -> np.ndarray:
    """A prediction's map turned to RAS+, as load_volume turns an exam."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(found.map, found.affine), folder / "map.nii.gz")
    return load_volume(folder / "map.nii.gz").data


def main(runs: Path, work: Path) -> None:
    small((runs / "comparison" / "figure3.png").read_bytes(), HERE / "figure3.webp", 1000)
    small(new_exam(runs / "guided-context", work / "new"), HERE / "map.webp", 1000)
    cli(["mask", str(runs / "no-mask" / "cohort.csv"), "--out", str(work), "-q"], standalone_mode=False)
    shutil.copy(runs / "report.html", work)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--hide-scrollbars",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    ):
        options.add_argument(word)
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        for name, (page, width, height, place) in VIEWS.items():
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get((work / page).resolve().as_uri())
            if place:
                browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", place)
                WebDriverWait(browser, 60).until(lambda it: it.find_element("id", "viewer").is_displayed())
                time.sleep(5)  # WebGL draws in software here
            small(browser.get_screenshot_as_png(), HERE / f"{name}.webp", width)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"), Path(folder))
