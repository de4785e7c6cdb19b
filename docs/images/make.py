"""Makes the pictures of README and docs from the demo's report: `make demo images`. It needs Chromium.

python docs/images/make.py [RUNS]      RUNS is the demo's folder, runs/demo
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

HERE = Path(__file__).parent
QUALITY = 85  # of WebP, so that the repository stays small
VIEWS = {"report": (1280, 780, ""), "report-phone": (390, 780, ""), "report-exams": (1280, 860, "exams")}


def small(picture: bytes, path: Path, width: int) -> None:
    """Writes a WebP file of at most so many pixels across."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.save(path, quality=QUALITY, method=6)


def main(runs: Path) -> None:
    small((runs / "comparison" / "figure3.png").read_bytes(), HERE / "figure3.webp", 1000)
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
        for name, (width, height, place) in VIEWS.items():
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get((runs / "report.html").resolve().as_uri())
            if place:
                browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", place)
                WebDriverWait(browser, 60).until(lambda it: it.find_element("id", "viewer").is_displayed())
                time.sleep(5)  # WebGL draws in software here
            small(browser.get_screenshot_as_png(), HERE / f"{name}.webp", width)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
