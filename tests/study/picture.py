"""The picture of a page that README shows, examples/trace.png. `python -m tests.study.picture` takes it anew (Chromium).

The picture carries a fingerprint of what its page says: names, formulas, lines of rules, rounded norms.
"""

import hashlib
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import tinydiff as td
from tinydiff.study.page import page

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "examples" / "trace.png"
STEP = "Linear #2", "L_W"  # the operation and the gradient that are shown
ELEMENT = 1  # of it, that the picture points at
KEY = "tinydiff page"


def traced():
    """The trace of examples/trace_three_layers.py."""
    scope = {"__name__": "example"}
    file = ROOT / "examples" / "trace_three_layers.py"
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), scope)
    with td.trace() as trace:
        scope["loss"]().backward()
    return trace


def fingerprint(trace) -> str:
    """A hash of what the page of a trace says, without times, line numbers and digits that depend on the machine."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page(trace), re.S).group(1))
    said = [
        [
            n["name"],
            n["module"],
            n["text"],
            n["names"],
            n["from"],
            [[*f[:3], f[4], [p[0] for p in f[5]]] for f in n["formulas"]],
        ]
        for n in data["nodes"]
    ]
    rules = [[[b["title"], [text for _, text in b["lines"]]] for b in rule["blocks"]] for rule in data["rules"]]
    norms = [[a["shape"], float(f"{a['norm']:.3g}")] for a in data["arrays"]]
    steps = [[step.get(name) for name in ("kind", "node", "where", "gradient")] for step in data["steps"]]
    return hashlib.sha256(json.dumps([said, rules, norms, steps, data["leaves"]]).encode()).hexdigest()


def take(driver) -> None:
    """Writes the picture that a browser shows of the page."""
    from PIL import Image, PngImagePlugin
    from selenium.webdriver import ActionChains, Keys

    trace = traced()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        trace.html(path, title="trace_three_layers.py:loss")
        driver.get(path.as_uri())
        for _ in range(100):
            found = [driver.find_element("css selector", name).text for name in ("h2", ".formula b")]
            if found[0].startswith(STEP[0]) and found[1] == STEP[1]:
                break
            ActionChains(driver).send_keys(Keys.ARROW_RIGHT).perform()
        pointed = driver.find_elements("css selector", "figure.array.out td")[ELEMENT]
        ActionChains(driver).move_to_element(pointed).perform()
        image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB").quantize(128)
    about = PngImagePlugin.PngInfo()
    about.add_text(KEY, fingerprint(trace))
    image.save(PICTURE, optimize=True, pnginfo=about)


if __name__ == "__main__":
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,1006"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        take(browser)
    finally:
        browser.quit()
    sys.stdout.write(f"{PICTURE}\n")
