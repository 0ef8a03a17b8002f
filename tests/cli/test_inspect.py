"""`splitquant inspect`, and `dequantize` of folders without a report."""

from __future__ import annotations

from builders.commands import refused
from builders.folders import (
    normal,
    write_folder,
)
from splitquant import api


def test_inspect_of_a_float_folder_says_so(cli, source):
    """A float folder is shown as what would become of it."""
    done = cli("inspect", source)
    assert done.code == 0
    assert "a float folder" in done.err
    assert "dB" not in done.out


def test_inspect_of_a_foreign_quantized_folder(cli, tmp_path):
    """A folder that something else quantized is refused."""
    config = {"quantization_config": {"quant_method": "gptq"}}
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 64)}, config=config)
    refused(cli("inspect", source), 1, "'gptq'")


def test_inspect_without_a_report(cli, tmp_path, source):
    """A quantized folder that has lost its report is still shown, without figures."""
    api.quantize(source, tmp_path / "q")
    (tmp_path / "q/splitquant_report.json").unlink()
    done = cli("inspect", tmp_path / "q")
    assert done.code == 0
    assert "INT4 k=4 min_error channel" in done.out
    assert "SQNR" not in done.out.splitlines()[-1]


def test_dequantize_needs_no_report(cli, tmp_path, source):
    """The report is not needed to get the floats back."""
    api.quantize(source, tmp_path / "q")
    (tmp_path / "q/splitquant_report.json").unlink()
    assert cli("dequantize", tmp_path / "q", "-o", tmp_path / "f").code == 0
