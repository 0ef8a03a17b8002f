"""`splitquant inspect --plot`."""

from __future__ import annotations

import math
import sys

import pytest

from builders.commands import refused
from builders.folders import normal, write_folder
from splitquant import api
from splitquant.core.spec import PAPER, QuantSpec

START = {"svg": b"<?xml", "png": b"\x89PNG"}


@pytest.fixture
def quantized(source, tmp_path):
    """The tiny folder, quantized."""
    api.quantize(source, tmp_path / "q")
    return tmp_path / "q"


@pytest.mark.parametrize("ending", START)
def test_the_depth(cli, quantized, tmp_path, ending):
    """Error along the depth; the same bytes every time."""
    pytest.importorskip("matplotlib")
    file = tmp_path / f"p.{ending}"
    assert cli("inspect", quantized, "--plot", file).code == 0
    data = file.read_bytes()
    assert data.startswith(START[ending])
    assert cli("inspect", quantized, "--plot", file).code == 0
    assert file.read_bytes() == data


@pytest.mark.parametrize("ending", START)
@pytest.mark.parametrize("with_source", [True, False], ids=["with its source", "alone"])
def test_a_tensor(cli, source, quantized, tmp_path, ending, with_source):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"p.{ending}"
    more = ("--source", source) if with_source else ()
    done = cli("inspect", quantized, "--plot", file, "--tensor", "model.layers.1.mlp.up_proj.weight", *more)
    assert done.code == 0
    assert "drawn in" in done.err
    assert file.read_bytes().startswith(START[ending])


@pytest.mark.parametrize("spec", [PAPER, QuantSpec(3, 1), QuantSpec(4, strategy="magnitude"), QuantSpec(3, 2, "lloyd")])
def test_all_grids(cli, tmp_path, spec):
    """Borders, own grids, clusters that overlap, free levels; names that matplotlib would take for formulas."""
    pytest.importorskip("matplotlib")
    name = "layers.0.$\\frac{$up_proj.weight"
    source = write_folder(tmp_path / "m", {name: normal(1, 48, 48)}, config={})
    api.quantize(source, tmp_path / "q", spec)
    for args in ((), ("--tensor", name, "--source", source)):
        assert cli("inspect", tmp_path / "q", "--plot", tmp_path / "p.svg", *args).code == 0


def test_kept_and_float_tensors(cli, source, quantized, tmp_path):
    pytest.importorskip("matplotlib")
    args = ("--plot", tmp_path / "p.png", "--tensor", "model.layers.0.input_layernorm.weight")
    assert cli("inspect", quantized, *args).code == 0
    assert cli("inspect", source, *args).code == 0


def test_lines_are_the_merged_figures(quantized, monkeypatch):
    """A point is the SQNR of all tensors of its kind and block."""
    from splitquant.cli.pictures import depth_lines
    from splitquant.report.outcome import Report

    report = api.inspect(quantized).report
    lines = depth_lines(report)
    assert set(lines) == {"mlp.up_proj", "mlp.down_proj", "self_attn.q_proj", "mlp.experts.gate_up_proj"}
    assert lines["mlp.up_proj"] == {
        at: report[f"model.layers.{at}.mlp.up_proj.weight"].figures.sqnr_db for at in (0, 1)
    }
    one = Report((report["lm_head.weight"],))
    assert depth_lines(one) == {"tensors": {0: report["lm_head.weight"].figures.sqnr_db}}
    assert math.isfinite(depth_lines(one)["tensors"][0])
    assert depth_lines(Report(())) == {}


def test_what_cannot_be_is_refused(cli, source, quantized, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "p.svg"
    refused(cli("inspect", quantized, "--plot", tmp_path / "p.gif"), 2, "ends in .svg, .png")
    refused(cli("inspect", quantized, "--tensor", "lm_head.weight"), 2, "give --plot FILE")
    refused(cli("inspect", quantized, "--plot", file, "--source", source), 2, "give --tensor NAME")
    refused(cli("inspect", quantized, "--plot", file, "--tensor", "lm_head.wait"), 2, "did you mean 'lm_head.weight'?")
    refused(cli("inspect", quantized, "--plot", file, "--tensor", "model.position_ids"), 1, "only floats can be drawn")
    refused(cli("inspect", source, "--plot", file), 2, "no error figures are known")
    refused(cli("inspect", quantized, "--plot", tmp_path / "no/p.svg"), 1, "no such folder")
    assert not file.exists()


def test_without_matplotlib(cli, quantized, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(cli("inspect", quantized, "--plot", tmp_path / "p.svg"), 1, "pip install 'splitquant[plot]'")
