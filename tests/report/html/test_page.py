"""The HTML file: the same bytes for the same models, nothing from outside, names that are text and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from builders.folders import normal, tiny_folder, write_folder
from splitquant import api
from splitquant.core.error import ErrorFigures
from splitquant.core.spec import QuantSpec
from splitquant.report.html.content import Content, Table, content_dict
from splitquant.report.html.page import page
from splitquant.report.outcome import Outcome, Report

ROOT = Path(__file__).parents[3]
HOSTILE = (
    "</script><img src=x onerror=alert(1)>.weight",
    "<!--<script>.weight",
    '"&quot;\u2028\u202egnp.weight',
    "%%DATA%%.weight",
    "\ud800.weight",
)
# npm pack uplot@1.6.32, dist/: what the tree carries is what its makers published.
PUBLISHED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


class Parsed(HTMLParser):
    """The tags of a page, and the text of its scripts and styles."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.inside = [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data

    def of(self, tag):
        """Attributes and text of every element of that name."""
        return [(attrs, text) for (name, attrs), text in zip(self.tags, self.texts, strict=True) if name == tag]


def data_of(text):
    """The data of a page."""
    ((_, data),) = [one for one in Parsed(text).of("script") if one[0].get("type") == "application/json"]
    return json.loads(data)


def outcome(name, **more):
    """A quantized tensor."""
    given = {"reason": "", "role": "linear", "dtype": "F32", "shape": (2, 4), "source_bytes": 32, "stored_bytes": 6}
    figures = ErrorFigures(8, 100.0, 1.0, 0.5)
    return Outcome(name, "quantized", **{**given, "spec": QuantSpec(), "figures": figures, **more})


def test_same_models_same_bytes(tmp_path):
    """Wherever they lie, and however many threads read them."""
    source = tiny_folder(tmp_path / "a/m")
    api.quantize(source, tmp_path / "a/q")
    once = api.html_report(source, tmp_path / "a/q", threads=1)
    (tmp_path / "b").mkdir()
    for name in ("m", "q"):
        (tmp_path / "a" / name).rename(tmp_path / "b" / name)
    assert api.html_report(tmp_path / "b/m", tmp_path / "b/q", threads=3) == once
    assert str(tmp_path) not in once


def test_a_folder_without_its_report_has_the_same_figures(tmp_path):
    source = tiny_folder(tmp_path / "m")
    api.quantize(source, tmp_path / "q")
    before = {one["n"]: one.get("f") for one in data_of(api.html_report(source, tmp_path / "q"))["tensors"]}
    (tmp_path / "q/splitquant_report.json").unlink()
    after = {one["n"]: one.get("f") for one in data_of(api.html_report(source, tmp_path / "q"))["tensors"]}
    assert after == before
    assert sum(one is not None for one in after.values()) > 5


def test_what_the_page_says_is_what_was_done(tmp_path):
    """Sizes, specs and figures are those of the report; histograms hold every weight."""
    source = tiny_folder(tmp_path / "m")
    report = api.quantize(source, tmp_path / "q")
    data = data_of(api.html_report(source, tmp_path / "q"))
    assert [one["n"] for one in data["tensors"]] == [one.name for one in report]
    assert (data["source"], data["destination"]) == ("m", "q")
    for one, said in zip(report, data["tensors"], strict=True):
        assert (said["b"], said["a"], said["s"], said["d"]) == (
            one.source_bytes,
            one.stored_bytes,
            list(one.shape),
            one.dtype,
        )
        assert ("kept" in said) == (one.outcome == "kept")
        if one.figures is not None:
            assert said["f"] == pytest.approx([one.figures.signal, one.figures.noise, one.figures.max_error], rel=1e-5)
        if one.dtype == "BF16":
            first, exponent, packed = said["v"][0]
            counts = 2 ** (np.frombuffer(base64.b64decode(packed), "<u2") / 1024) - 1
            assert counts.sum() == pytest.approx(one.weights, rel=1e-3)
            assert len(counts) <= 128
            assert (first + len(counts)) * 2.0**exponent > 0
    assert sum(number for _, number, *_ in data["groups"]) == len(report)


def test_nothing_comes_from_outside(tmp_path):
    """No element names another file, and the policy allows the two scripts and the style by their hashes, and nothing else."""
    source = tiny_folder(tmp_path / "m")
    api.quantize(source, tmp_path / "q")
    parsed = Parsed(api.html_report(source, tmp_path / "q"))
    for _, attrs in parsed.tags:
        assert not {"src", "href", "srcset", "action", "data", "onload", "onerror", "onclick", "style"} & set(attrs)
    ((policy, _),) = [one for one in parsed.of("meta") if one[0].get("http-equiv") == "Content-Security-Policy"]
    scripts = [text for attrs, text in parsed.of("script") if "type" not in attrs]
    ((_, style),) = parsed.of("style")
    assert len(scripts) == 2
    for text in (*scripts, style):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].count("'") == 4
    assert "unsafe" not in policy["content"]
    assert "://" not in scripts[1] + style


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(name):
    """A name that would end the script, begin another, or stand for a part of the template changes no tag and is given back whole."""
    plain = Parsed(page(Content("m", "q", Report((outcome("a.weight"),)))))
    hostile = page(
        Content(
            name, name, Report((outcome(name, reason=name),), notes=(name,)), tables=(Table(name, (name,), ((name,),)),)
        )
    )
    hostile.encode()
    parsed = Parsed(hostile)
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in plain.tags]
    data = data_of(hostile)
    assert data["tensors"][0]["n"] == name
    assert (data["source"], data["notes"], data["tables"][0]["rows"]) == (name, [name], [[name]])


def test_hostile_names_in_a_folder(tmp_path):
    """The same from end to end."""
    tensors = {name: normal(i, 32, 32) for i, name in enumerate(HOSTILE[:4])}
    source = write_folder(tmp_path / "m", tensors, config={})
    api.quantize(source, tmp_path / "q")
    assert {one["n"] for one in data_of(api.html_report(source, tmp_path / "q"))["tensors"]} == set(HOSTILE[:4])


def test_figures_without_a_number_in_json():
    """What is infinite is left out, and what was not lost stays 0."""
    lost_nothing = outcome("a", figures=ErrorFigures(8, 100.0, 0.0, 0.0))
    data = content_dict(Content("m", "q", Report((lost_nothing, outcome("b", figures=ErrorFigures(8, 0.0, 1.0, 1.0))))))
    json.dumps(data, allow_nan=False)
    assert [one["f"] for one in data["tensors"]] == [[100.0, 0.0, 0.0], [0.0, 1.0, 1.0]]


def test_even_levels_are_three_numbers(tmp_path):
    """Levels of linear grids are told by first, step and number, free ones one by one."""
    source = write_folder(tmp_path / "m", {"up_proj.weight": normal(1, 64, 64, dtype="fp32")}, config={})
    for strategy, keys in (("min_error", {"from", "step", "n"}), ("lloyd", {"at"})):
        api.quantize(source, tmp_path / "q", QuantSpec(3, 2, strategy), force=True)
        (tensor,) = data_of(api.html_report(source, tmp_path / "q"))["tensors"]
        assert [set(row) for row in tensor["g"]["levels"]] == [keys, keys]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_library_is_what_was_published(name):
    """What is carried of uPlot is unchanged, with its licence beside it."""
    data = files("splitquant.report.html").joinpath("uplot", name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == PUBLISHED[name]


def test_licences_are_declared():
    """The package says that it holds MIT code, and which file is its licence."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'license = "Apache-2.0 AND MIT"' in project
    (named,) = re.findall(r"^license-files = (\[.*\])$", project, re.MULTILINE)
    assert [path for path in json.loads(named) if not (ROOT / path).is_file()] == []
    assert "src/splitquant/report/html/uplot/LICENSE" in json.loads(named)


def test_the_script_is_valid(tmp_path):
    """Node, where there is one, can parse it."""
    try:
        text = page(Content("m", "q", Report(())))
        script = [text for attrs, text in Parsed(text).of("script") if "type" not in attrs][1]
        (tmp_path / "page.js").write_text(script)
        done = subprocess.run(["node", "--check", tmp_path / "page.js"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("node is not installed")
    assert done.returncode == 0, done.stderr
