"""`splitquant report` and `quantize --report`."""

from __future__ import annotations

import json
import re

import pytest

from builders.commands import refused
from builders.folders import tiny_folder


def data_of(file):
    """The data of a page."""
    text = file.read_text("utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def test_report(cli, source, tmp_path):
    """The file is written, and says so on standard error alone."""
    cli("quantize", source, "-o", tmp_path / "q")
    done = cli("report", source, tmp_path / "q", "-o", tmp_path / "r.html")
    assert (done.code, done.out) == (0, "")
    assert f"written to {tmp_path / 'r.html'}" in done.err
    first = (tmp_path / "r.html").read_bytes()
    assert cli("report", source, tmp_path / "q", "-o", tmp_path / "r.html", "-q") == (0, "", "")
    assert (tmp_path / "r.html").read_bytes() == first


def test_quantize_with_a_report(cli, source, tmp_path):
    """`--report` writes the page that `report` would."""
    assert cli("quantize", source, "-o", tmp_path / "q", "--report", tmp_path / "a.html").code == 0
    assert cli("report", source, tmp_path / "q", "-o", tmp_path / "b.html").code == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_frontier_is_on_the_page(cli, source, tmp_path):
    """Where the plan was chosen by size, the page has all sizes, and the one that was taken is marked."""
    options = ("--target-bits", 5, "--granularity", "channel", "--report", tmp_path / "a.html")
    assert cli("quantize", source, "-o", tmp_path / "q", *options).code == 0
    frontier = data_of(tmp_path / "a.html")["frontier"]
    assert len(frontier) > 3
    assert [point["bytes"] for point in frontier] == sorted(point["bytes"] for point in frontier)
    (chosen,) = [point for point in frontier if point["chosen"]]
    assert 4 < chosen["bits"] <= 5


def test_an_onnx_file_has_a_page_when_it_is_quantized(cli, tmp_path):
    """Without pictures of values; afterwards there is no page, and the error says how to get one."""
    onnx = pytest.importorskip("onnx")
    from builders.onnx_models import matmul

    onnx.save(matmul(), tmp_path / "m.onnx")
    args = ("quantize", tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", "--report", tmp_path / "r.html")
    assert cli(*args).code == 0
    (tensor,) = data_of(tmp_path / "r.html")["tensors"]
    assert tensor["f"][0] > tensor["f"][1] > 0
    assert "v" not in tensor
    done = cli("report", tmp_path / "m.onnx", tmp_path / "q.onnx", "-o", tmp_path / "r.html")
    refused(done, 2, "m.onnx", "splitquant quantize SRC.onnx -o DST.onnx --report FILE.html")


def test_what_cannot_be_is_refused(cli, source, tmp_path):
    """Before anything is read or written, with a word on what to do."""
    cli("quantize", source, "-o", tmp_path / "q")
    report = ("report", source, tmp_path / "q", "-o")
    refused(cli(*report, tmp_path / "no/r.html"), 1, "no such folder")
    refused(cli(*report, source / "model.safetensors"), 1, "is the source or the destination itself")
    refused(cli("report", source, source, "-o", tmp_path / "r.html"), 1, "is no splitquant folder")
    refused(cli("report", tmp_path / "x", tmp_path / "q", "-o", tmp_path / "r.html"), 1, "no such folder")
    other = tiny_folder(tmp_path / "other", seed=5)
    quantize = ("quantize", other, "-o", tmp_path / "o")
    refused(cli(*quantize, "--report", tmp_path / "r.html", "--dry-run"), 2, "--dry-run makes nothing")
    refused(cli(*quantize, "--report", tmp_path / "r.html", "--json", tmp_path / "r.html"), 2, "are the same file")
    assert not (tmp_path / "r.html").exists()
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("role", "boss", "has the role 'boss'"),
        ("name", 7, "has the name 7, which is no text"),
        ("stored_bytes", -1, "has the stored_bytes -1, which is no count"),
        ("shape", [8, "8"], "has the shape '8', which is no count"),
        ("figures", {"weights": 1, "signal": float("nan"), "noise": 1, "max_error": 1}, "has the signal nan"),
        ("figures", {"weights": 1, "signal": 1, "noise": "1", "max_error": 1}, "has the noise '1', which is no figure"),
    ],
)
def test_a_report_that_cannot_be_is_refused(cli, source, tmp_path, key, value, says):
    """Whatever stands in the report of a folder ends as one clear error, not as a broken page."""
    cli("quantize", source, "-o", tmp_path / "q")
    file = tmp_path / "q/splitquant_report.json"
    data = json.loads(file.read_text())
    data["tensors"][0][key] = value
    file.write_text(json.dumps(data))
    refused(
        cli("report", source, tmp_path / "q", "-o", tmp_path / "r.html"), 1, "is not a report of this version", says
    )
    assert not (tmp_path / "r.html").exists()
