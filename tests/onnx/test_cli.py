"""The verbs over .onnx files: what they write and print."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx_models import heavy, matmul
from typer.testing import CliRunner

from splitquant.cli.main import app
from splitquant.cli.onnx_quantize import run_onnx_quantize
from splitquant.cli.onnx_split import run_onnx_split
from splitquant.cli.onnx_verify import run_onnx_verify
from splitquant.errors import DestinationError, SourceError, SpecError
from splitquant.onnx import DEFAULT_SPEC

COMMON = {
    "include": (),
    "exclude": (),
    "max_memory": "1GiB",
    "threads": 1,
    "json_file": None,
    "force": False,
    "quiet": False,
    "verbose": False,
}


@pytest.fixture
def source(tmp_path):
    onnx.save(matmul(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_split_then_verify(source, tmp_path, capsys):
    """split prints the nodes, verify the outputs."""
    out = tmp_path / "out.onnx"
    run_onnx_split(source, out, DEFAULT_SPEC, **COMMON)
    said = capsys.readouterr()
    assert "fc" in said.out
    assert "1 nodes converted" in said.err
    run_onnx_verify(source, out, inputs=None, min_sqnr=100, quiet=False)
    said = capsys.readouterr()
    assert "SQNR" in said.out
    assert "checker accepts" in said.err


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_quantize_then_verify_with_inputs(source, tmp_path, capsys, form):
    """quantize writes its report as JSON; verify takes inputs from an .npz file and counts kernels."""
    out = tmp_path / "out.onnx"
    common = COMMON | {"json_file": tmp_path / "report.json", "verbose": True}
    run_onnx_quantize(source, out, DEFAULT_SPEC, form=form, embeddings="8", **common)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nodes"][0]["outcome"] == "quantized"
    np.savez(tmp_path / "inputs.npz", x=heavy((2, 64)))
    capsys.readouterr()
    run_onnx_verify(source, out, inputs=tmp_path / "inputs.npz", min_sqnr=None, quiet=False)
    assert "3 low-bit branches: 3 use a low-bit kernel" in capsys.readouterr().err


def test_quiet_prints_nothing(source, tmp_path, capsys):
    """-q prints nothing at all."""
    out = tmp_path / "out.onnx"
    run_onnx_split(source, out, DEFAULT_SPEC, **(COMMON | {"quiet": True}))
    run_onnx_verify(source, out, inputs=None, min_sqnr=None, quiet=True)
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_inputs_that_are_no_npz(source, tmp_path):
    """A file of inputs that is none is named."""
    run_onnx_split(source, tmp_path / "out.onnx", DEFAULT_SPEC, **COMMON)
    with pytest.raises(SourceError, match=r"m.onnx: is no .npz file"):
        run_onnx_verify(source, tmp_path / "out.onnx", inputs=source, min_sqnr=None, quiet=True)


@pytest.mark.parametrize("verb", ["split", "quantize"])
def test_extensions_in_capitals(tmp_path, verb):
    """An .ONNX file is an ONNX file to every verb."""
    onnx.save(matmul(), tmp_path / "M.ONNX", format="protobuf")
    run = CliRunner().invoke(app, [verb, str(tmp_path / "M.ONNX"), "-o", str(tmp_path / "out.onnx")])
    assert run.exit_code == 0
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "M.ONNX"), str(tmp_path / "out.onnx")]).exit_code == 0


def test_what_is_for_the_other_kind_of_source(tmp_path):
    """A folder given to `split`, and --format with a folder, are told."""
    (tmp_path / "config.json").write_text("{}")
    run = CliRunner().invoke(app, ["split", str(tmp_path), "-o", str(tmp_path / "out")])
    assert isinstance(run.exception, SourceError)
    assert "is a folder" in str(run.exception)
    run = CliRunner().invoke(app, ["quantize", str(tmp_path), "-o", str(tmp_path / "out"), "--format", "matmulnbits"])
    assert isinstance(run.exception, SpecError)
    assert "--format" in str(run.exception)


@pytest.mark.parametrize("name", ["m.onnx", "out.onnx"])
def test_reports_replace_no_model(source, tmp_path, name):
    """--json at a place of the source or the result is refused."""
    before = source.read_bytes()
    with pytest.raises(DestinationError, match="is the source or the destination itself"):
        run_onnx_split(source, tmp_path / "out.onnx", DEFAULT_SPEC, **(COMMON | {"json_file": tmp_path / name}))
    assert source.read_bytes() == before
    assert not (tmp_path / "out.onnx").exists()


def test_a_checker_that_refuses_both(tmp_path, capsys):
    """What the checker says of source and result alike is printed."""
    made = matmul()
    made.graph.node[0].domain = "ai.onnx"
    onnx.save(made, tmp_path / "m.onnx")
    run_onnx_verify(tmp_path / "m.onnx", tmp_path / "m.onnx", inputs=None, min_sqnr=None, quiet=False)
    assert "the onnx checker refuses both models" in capsys.readouterr().err
