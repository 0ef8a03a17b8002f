"""The page in a browser: what it shows, how it is used, and that it asks nobody for anything.

Needs Debian's packages chromium and chromium-driver (.ci/run installs them where it may) and selenium (requirements/dev.txt).
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from builders.folders import normal, write_folder
from splitquant import api
from splitquant.cli.frontier import with_chosen
from splitquant.core.bars import Bars
from splitquant.core.error import ErrorFigures
from splitquant.core.spec import QuantSpec
from splitquant.report.distribution import Distribution, GridPicture, Segment
from splitquant.report.html.content import Content
from splitquant.report.html.page import page
from splitquant.report.outcome import Outcome, Report
from splitquant.storage.resources import Resources

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: requirements/dev.txt has it")
DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    DRIVER is None or BROWSER is None, reason="no browser to test the page in: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "model.layers.1.</script><img src=x onerror=alert(1)>.weight"


class Page:
    """A page that is open in the browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, file, *, width=1440, height=900, dark=False):
        """Open a file in a window of that size and with that theme of the system."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})
        self.driver.get(Path(file).as_uri())
        return self

    def js(self, script, *arguments):
        """What a function body returns."""
        return self.driver.execute_script(script, *arguments)

    def click(self, selector, text=None):
        """Click the first element that has this text (or any)."""
        self.js(
            "[...document.querySelectorAll(arguments[0])].find(e => arguments[1] === null || e.textContent === arguments[1]).click()",
            selector,
            text,
        )

    def press(self, key):
        """Press a key wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.driver).send_keys(getattr(Keys, key, key)).perform()

    def names(self):
        """The tensors in the table, from the top."""
        return self.js("return [...document.querySelectorAll('#tensors tbody button')].map(e => e.textContent)")

    def text(self, selector):
        """The text of an element."""
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def filter(self, text):
        """Type into the filter."""
        self.js(
            "const f = document.getElementById('filter'); f.value = arguments[0]; f.dispatchEvent(new Event('input'))",
            text,
        )

    def colours(self, selector):
        """How many pixels of a chart have each colour, the frequent ones."""
        return self.js(
            """const c = document.querySelector(arguments[0] + ' canvas');
            const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
            const n = {};
            for (const p of d) if (p >>> 24 === 255) { const k = (p & 0xffffff).toString(16).padStart(6, '0'); n[k] = (n[k] || 0) + 1; }
            return n""",
            selector,
        )

    def paint(self, name):
        """A colour of the theme, as `colours` names it."""
        value = self.js("return getComputedStyle(document.documentElement).getPropertyValue(arguments[0]).trim()", name)
        return value[5:7] + value[3:5] + value[1:3]

    def complaints(self):
        """What the console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """All that was asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield Page(driver)
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of a small model that was quantized to a size, with a name that is no good."""
    place = tmp_path_factory.mktemp("page")
    tensors = {"model.embed_tokens.weight": normal(0, 96, 64), HOSTILE: normal(8, 48, 64)}
    for i in range(3):
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = normal(3 * i, 128, 64, dtype="fp32") * (i + 1)
        tensors[f"model.layers.{i}.mlp.down_proj.weight"] = normal(3 * i + 1, 64, 128)
        tensors[f"model.layers.{i}.input_layernorm.weight"] = normal(3 * i + 2, 64)
    source = write_folder(place / "m", tensors, config={"model_type": "llama"})
    resources = Resources.of(threads=1)
    with api.prepare(source, None, resources, fixed={"clusters": 4, "strategy": "min_error"}, target_bits=6) as job:
        report = job.apply(place / "q", resources)
        marks = with_chosen(job.frontier.marks(), job.chosen)
        text = api.result_page(source, place / "q", report, resources, frontier=marks, chosen=job.chosen)
    (place / "page.html").write_text(text, encoding="utf-8")
    return place / "page.html"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A page of 2,000 tensors with all their pictures."""
    chance = np.random.default_rng(0)
    outcomes, seen = [], {}
    for i in range(2000):
        name = f"model.layers.{i // 10}.mlp.experts.{i % 10}.up_proj.weight"
        figures = ErrorFigures(10**6, 1e5, float(chance.uniform(1, 100)), 0.1)
        outcomes.append(
            Outcome(name, "quantized", "", "expert", "BF16", (1000, 1000), 2 * 10**6, 750_000, QuantSpec(), figures)
        )
        values, errors, scaled = (Bars.of(chance.standard_t(3, 3000).astype(np.float32)) for _ in range(3))
        segments = tuple(Segment(c - 2.0, c - 1.01, c) for c in range(4))
        levels = tuple(tuple(c - 2 + q / 16 for q in range(16)) for c in range(4))
        seen[name] = Distribution(values, errors, GridPicture("scaled", scaled, levels, segments))
    file = tmp_path_factory.mktemp("large") / "page.html"
    file.write_text(page(Content("m", "q", Report(tuple(outcomes)), seen)), encoding="utf-8")
    return file


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000, 1440])
def test_it_opens_and_asks_for_nothing(browser, file, width, dark):
    """No complaint on the console, no request but for the file itself, nothing wider than the window."""
    shown = browser.open(file, width=width, dark=dark)
    for selector in ("#tensors tbody tr:nth-child(3)", ".kind", "#theme", "[data-key=size] button"):
        shown.click(selector)
    assert shown.complaints() == []
    assert shown.requests() == [file.as_uri()]
    assert shown.js("return document.documentElement.scrollWidth") <= width
    assert shown.text("h1") == "q"
    shown.js("localStorage.clear()")


def test_it_could_not_ask(browser, file):
    """The policy of the page stops a picture, a script and a request before they leave."""
    shown = browser.open(file)
    stopped = browser.driver.execute_async_script(
        """const done = arguments[0], found = [];
        addEventListener('securitypolicyviolation', (e) => { found.push(e.effectiveDirective); if (found.length === 3) done(found.sort()); });
        document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/x.png' }));
        const script = document.createElement('script'); script.textContent = 'window.stranger = 1'; document.body.append(script);
        fetch('http://127.0.0.1:9/').catch(() => 0);"""
    )
    assert stopped == ["connect-src", "img-src", "script-src-elem"]
    assert shown.js("return window.stranger") is None


def test_names_are_text(browser, file):
    """A name that looks like markup is shown as it is and makes no element."""
    shown = browser.open(file)
    assert HOSTILE in shown.names()
    assert shown.js("return document.images.length") == 0
    shown.filter("onerror")
    shown.click("#tensors tbody tr")
    assert shown.text("#detail h2") == HOSTILE
    assert shown.complaints() == []


def test_sort(browser, file):
    """A header sorts, sorts the other way round, and gives back the order of the model."""
    shown = browser.open(file)
    data = {one["n"]: one for one in json.loads(shown.text("#data"))["tensors"]}
    before = shown.names()
    assert before == list(data)
    shown.click("[data-key=size] button")
    assert shown.js("return document.querySelector('[data-key=size]').getAttribute('aria-sort')") == "descending"
    sizes = [data[name]["a"] for name in shown.names()]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2
    shown.click("[data-key=size] button")
    assert [data[name]["a"] for name in shown.names()] == sorted(sizes)
    shown.click("[data-key=size] button")
    assert shown.names() == before
    shown.click("[data-key=sqnr] button")
    noise = [data[name]["f"][1] / data[name]["f"][0] for name in shown.names() if "f" in data[name]]
    assert noise == sorted(noise, reverse=True)
    assert ["f" in data[name] for name in shown.names()] == sorted(("f" in one for one in data.values()), reverse=True)


def test_filter(browser, file):
    """All words must be there; the list of specs and the kinds filter too."""
    shown = browser.open(file)
    everything = shown.names()
    shown.filter("UP_PROJ layers.2")
    assert shown.names() == ["model.layers.2.mlp.up_proj.weight"]
    assert shown.text("#count") == f"1 of {len(everything)} tensors"
    shown.filter("")
    shown.js("const w = document.getElementById('which'); w.value = 'kept'; w.dispatchEvent(new Event('change'))")
    assert shown.names() == [name for name in everything if "layernorm" in name]
    shown.click(".kind .name", "mlp.up_proj")
    assert shown.names() == [name for name in everything if name.endswith(".mlp.up_proj.weight")]


def test_choose_a_tensor(browser, file):
    """Its figures are shown, its bars in the colour of each cluster, the levels in ticks, its errors."""
    shown = browser.open(file)
    name = "model.layers.1.mlp.up_proj.weight"
    shown.js(
        "[...document.querySelectorAll('#tensors tbody tr')].find(r => r.textContent.startsWith(arguments[0])).click()",
        name,
    )
    assert shown.text("#detail h2") == name
    tensor = next(one for one in json.loads(shown.text("#data"))["tensors"] if one["n"] == name)
    assert f"{8 * tensor['a'] / (128 * 64):.2f}" in shown.text("#detail dl")
    clusters = {part[2] for part in tensor["g"]["parts"]}
    assert clusters == {0, 1, 2, 3}
    colours = shown.colours("#values")
    assert all(colours.get(shown.paint(f"--c{cluster}"), 0) > 100 for cluster in clusters)
    assert shown.colours("#errors").get(shown.paint("--c2"), 0) > 100
    assert (
        shown.js("return document.querySelector('#values').getAttribute('aria-label')")
        == f"Histogram of the values of {name}"
    )
    shown.click("#detail .toggles button", "As weights")
    colours = shown.colours("#values")
    assert colours[shown.paint("--c0")] > 100
    assert shown.paint("--c3") not in colours
    shown.click("#detail .toggles button", "Logarithmic")
    assert shown.colours("#values")[shown.paint("--c0")] > colours[shown.paint("--c0")]
    assert shown.complaints() == []


def test_keyboard(browser, file):
    """A slash leads to the filter, arrows walk through the tensors, escape takes the filter away."""
    shown = browser.open(file)
    everything = shown.names()
    shown.press("/")
    assert shown.js("return document.activeElement.id") == "filter"
    for letter in "mlp":
        shown.press(letter)
    found = [name for name in everything if "mlp" in name]
    assert shown.names() == found
    shown.press("ARROW_DOWN")
    assert shown.text("#detail h2") == found[0]
    shown.press("ARROW_DOWN")
    assert shown.text("#detail h2") == found[1]
    assert shown.js("return document.activeElement.textContent") == found[1]
    shown.press("END")
    assert shown.text("#detail h2") == found[-1]
    shown.press("/")
    shown.press("ESCAPE")
    assert shown.names() == everything


def test_themes(browser, file):
    """The system's theme counts until one is chosen, which is remembered; charts are drawn in its colours."""
    back = "return getComputedStyle(document.body).backgroundColor"
    shown = browser.open(file, dark=True)
    dark, ink = shown.js(back), shown.paint("--c1")
    assert shown.colours("#depth")[ink] > 50
    shown.click("#theme")
    assert shown.text("#theme") == "Light"
    light = shown.js(back)
    assert light != dark
    assert shown.colours("#depth")[shown.paint("--c1")] > 50
    assert ink not in shown.colours("#depth")
    browser.open(file, dark=True)
    assert shown.js(back) == light
    shown.click("#theme")
    browser.open(file)
    assert shown.js(back) == dark
    shown.js("localStorage.clear()")


def test_the_whole_model(browser, file):
    """A line for every kind of layer that is in the blocks; the frontier with the plan that was chosen."""
    shown = browser.open(file)
    assert shown.js("return document.querySelectorAll('#depth-legend button').length") == 3
    assert shown.colours("#frontier")[shown.paint("--c1")] > 50
    assert "the plan that was chosen" in shown.text("#frontier-says")
    before = shown.colours("#depth")[shown.paint("--c1")]
    shown.click("#depth-legend button:nth-child(2)")
    assert shown.colours("#depth").get(shown.paint("--c1"), 0) < before / 4


def test_print(browser, file):
    """Printing from the dark theme gives a PDF in light colours, and the screen is as before."""
    shown = browser.open(file, dark=True)
    width = shown.js("return document.querySelector('#depth canvas').width")
    shown.js(
        "window.ink = null; addEventListener('beforeprint', () => { window.ink = getComputedStyle(document.documentElement).getPropertyValue('--back').trim(); })"
    )
    pdf = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert shown.js("return window.ink") == "#f6f7f9"
    assert shown.js("return document.querySelector('#depth canvas').width") == width
    assert shown.complaints() == []


def test_two_thousand_tensors(browser, large):
    """Under 5 MB; rows come as one scrolls, and the last one is there when it is asked for."""
    assert large.stat().st_size < 5_000_000
    shown = browser.open(large)
    assert 0 < len(shown.names()) <= 200
    assert shown.text("#count") == "2000 tensors"
    shown.click("#tensors tbody tr")
    shown.press("END")
    assert shown.text("#detail h2") == "model.layers.199.mlp.experts.9.up_proj.weight"
    assert len(shown.names()) == 2000
    shown.filter("layers.117. experts.3")
    assert shown.names() == ["model.layers.117.mlp.experts.3.up_proj.weight"]
    assert shown.complaints() == []


def test_an_empty_model(browser, tmp_path):
    """Without tensors, without figures and without pictures there is still a page."""
    kept = Outcome("a", "kept", "a norm", "other", "F32", (4,), 16, 16)
    for report in (Report(()), Report((kept,))):
        (tmp_path / "page.html").write_text(page(Content("m", "q", report)), encoding="utf-8")
        shown = browser.open(tmp_path / "page.html")
        assert shown.complaints() == []
        assert shown.names() == [one.name for one in report]
