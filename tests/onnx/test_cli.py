"""The verbs over .onnx files: what they write and print."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx_models import heavy, matmul
from typer.testing import CliRunner

from splitquant import QuantSpec
from splitquant.cli.main import app, run
from splitquant.cli.onnx_convert import OnnxJob, run_onnx_convert
from splitquant.cli.onnx_verify import OnnxCheck, run_onnx_verify
from splitquant.errors import DestinationError, SourceError, SpecError
from splitquant.onnx import SPLIT_SPEC, Options

SPLIT = Options(SPLIT_SPEC, embeddings=None, format="float")


@pytest.fixture
def source(tmp_path):
    onnx.save(matmul(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_split_then_verify(source, tmp_path, capsys):
    """split prints the nodes, verify the outputs."""
    out = tmp_path / "out.onnx"
    run_onnx_convert(OnnxJob(source, out, SPLIT))
    said = capsys.readouterr()
    assert "fc" in said.out
    assert "1 nodes converted" in said.err
    run_onnx_verify(OnnxCheck(source, out, min_sqnr=100))
    said = capsys.readouterr()
    assert "SQNR" in said.out
    assert "checker accepts" in said.err


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_quantize_then_verify_with_inputs(source, tmp_path, capsys, form):
    """quantize writes its report as JSON; verify takes inputs from an .npz file and counts kernels."""
    out = tmp_path / "out.onnx"
    run_onnx_convert(OnnxJob(source, out, Options(format=form), json_file=tmp_path / "report.json", verbose=True))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nodes"][0]["outcome"] == "quantized"
    np.savez(tmp_path / "inputs.npz", x=heavy((2, 64)))
    capsys.readouterr()
    run_onnx_verify(OnnxCheck(source, out, tmp_path / "inputs.npz"))
    assert "2 low-bit branches: 2 use a low-bit kernel" in capsys.readouterr().err


def test_quiet_prints_nothing(source, tmp_path, capsys):
    """-q prints nothing at all."""
    out = tmp_path / "out.onnx"
    run_onnx_convert(OnnxJob(source, out, SPLIT, quiet=True))
    run_onnx_verify(OnnxCheck(source, out, quiet=True))
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_inputs_that_are_no_npz(source, tmp_path):
    """A file of inputs that is none is named."""
    run_onnx_convert(OnnxJob(source, tmp_path / "out.onnx", SPLIT))
    np.save(tmp_path / "one.npy", heavy((2, 64)))
    np.savez(tmp_path / "good.npz", x=heavy((2, 64)))
    good = (tmp_path / "good.npz").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    damaged = {"empty": b"", "half": good[: len(good) // 2], "flipped": bytes(flipped), "garbage": b"PK\x03\x04garbage"}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
    for name in ("m.onnx", "one.npy", *damaged):
        with pytest.raises(SourceError, match=rf"{name}: is no .npz file.*numpy.savez"):
            run_onnx_verify(OnnxCheck(source, tmp_path / "out.onnx", tmp_path / name))


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


@pytest.mark.parametrize("name", ["m.onnx", "weights.bin", "out.onnx", "out.onnx.data"])
def test_reports_replace_no_model(tmp_path, name):
    """--json at a place of the source or the result is refused, external data included."""
    source = tmp_path / "m.onnx"
    onnx.save(matmul(), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = source.read_bytes(), (tmp_path / "weights.bin").read_bytes()
    with pytest.raises(DestinationError, match="is the source or the destination itself"):
        run_onnx_convert(OnnxJob(source, tmp_path / "out.onnx", SPLIT, json_file=tmp_path / name))
    assert not (tmp_path / "out.onnx").exists()
    run_onnx_convert(OnnxJob(source, tmp_path / "out.onnx", SPLIT))
    with pytest.raises(DestinationError, match="is the source or the destination itself"):
        run_onnx_verify(OnnxCheck(source, tmp_path / "out.onnx", json_file=tmp_path / name))
    assert (source.read_bytes(), (tmp_path / "weights.bin").read_bytes()) == before


def test_verify_writes_json_and_takes_sizes(source, tmp_path):
    """verify --json has every figure; --size sets an open dimension, and a name or a number that is none is told."""
    out = tmp_path / "out.onnx"
    run_onnx_convert(OnnxJob(source, out, Options()))
    arguments = ["verify", str(source), str(out), "--json"]
    run = CliRunner().invoke(app, [*arguments, "-", "--size", "b=5"])
    assert run.exit_code == 0
    found = json.loads(run.stdout)
    assert found["outputs"][0]["name"] == "y"
    assert found["branches"] == found["in_kernels"] + found["dequantized"] + found["folded"] == 2
    for wrong, said in (
        ("c=5", r"no open dimensions ['c']; they have ['b']"),
        ("b", "expected NAME=N"),
        ("b=-1", "NAME=N"),
    ):
        run = CliRunner().invoke(app, [*arguments, "-", "--size", wrong])
        assert isinstance(run.exception, SpecError)
        assert said in str(run.exception)
    run = CliRunner().invoke(app, [*arguments, str(out)])
    assert isinstance(run.exception, DestinationError)
    same = CliRunner().invoke(app, ["verify", str(source), str(source), "--json", "-"])
    assert json.loads(same.stdout)["outputs"][0]["sqnr_db"] == "inf"


def test_matmulnbits_options(source, tmp_path):
    """--block-size and --accuracy-level reach the operator; a folder has neither."""
    out = tmp_path / "out.onnx"
    options = ["--format", "matmulnbits", "--block-size", "32", "--accuracy-level", "1"]
    assert CliRunner().invoke(app, ["quantize", str(source), "-o", str(out), *options]).exit_code == 0
    (node,) = [node for node in onnx.load(out).graph.node if node.name == "fc.part0"]
    found = {attribute.name: attribute.i for attribute in node.attribute}
    assert (found["block_size"], found["accuracy_level"]) == (32, 1)
    (tmp_path / "config.json").write_text("{}")
    run = CliRunner().invoke(app, ["quantize", str(tmp_path), "-o", str(tmp_path / "out"), "--block-size", "32"])
    assert isinstance(run.exception, SpecError)
    assert "of .onnx files" in str(run.exception)


def test_options_of_onnx_for_a_folder(tmp_path):
    """verify refuses what only an ONNX model has."""
    run = CliRunner().invoke(app, ["verify", str(tmp_path), str(tmp_path), "--size", "b=1"])
    assert isinstance(run.exception, SpecError)


def test_nothing_to_convert(tmp_path):
    """A model without a layer is told with the reasons, and no file comes into being."""
    made = matmul()
    made.graph.node[0].input[1] = "x"
    del made.graph.initializer[:]
    onnx.save(made, tmp_path / "m.onnx")
    for verb in ("split", "quantize"):
        run = CliRunner().invoke(app, [verb, str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out.onnx")])
        assert isinstance(run.exception, SourceError)
        assert "nothing to convert (1 x no input is a constant)" in str(run.exception)
    assert not (tmp_path / "out.onnx").exists()


def test_a_checker_that_refuses_both(tmp_path, capsys):
    """What the checker says of source and result alike is printed."""
    made = matmul()
    made.graph.node[0].domain = "ai.onnx"
    onnx.save(made, tmp_path / "m.onnx")
    run_onnx_verify(OnnxCheck(tmp_path / "m.onnx", tmp_path / "m.onnx"))
    assert "the onnx checker refuses both models" in capsys.readouterr().err


def test_destinations_without_a_name(source):
    """A folder, or nothing, as the output, and as the model to be verified."""
    for output in ("", "."):
        run = CliRunner().invoke(app, ["quantize", str(source), "-o", output])
        assert isinstance(run.exception, DestinationError)
        assert "give the name of a file" in str(run.exception)
    for more in ([], ["--json", "x.json"]):
        run = CliRunner().invoke(app, ["verify", str(source), ".", *more])
        assert isinstance(run.exception, SourceError)


@pytest.mark.parametrize("location", ["a" * 5000, "a/" * 3000, "a\0b"], ids=["long", "deep", "zero byte"])
def test_locations_that_no_file_can_have(tmp_path, location):
    """What a model says of its external data is looked at only where it can be a file."""
    made = matmul()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    for verb in (["quantize", "-o", str(tmp_path / "o.onnx")], ["verify", str(tmp_path / "m.onnx")]):
        run = CliRunner().invoke(app, [*verb, str(tmp_path / "m.onnx"), "--json", str(tmp_path / "j.json")])
        assert isinstance(run.exception, SourceError)


@pytest.mark.parametrize("option", [["--block-size", "128"], ["--accuracy-level", "4"], ["--block-size", "32"]])
def test_options_of_matmulnbits_for_qdq(source, tmp_path, option):
    """They say nothing of QDQ, the default format, so they are refused even where they name the default."""
    for form in ([], ["--format", "qdq"]):
        run = CliRunner().invoke(app, ["quantize", str(source), "-o", str(tmp_path / "out.onnx"), *form, *option])
        assert isinstance(run.exception, SpecError)
        assert "of --format matmulnbits" in str(run.exception)


@pytest.mark.parametrize(
    ("said", "spec"),
    [
        ([], "INT4 k=2 residual channel parallel"),
        (["--bits", "8"], "INT8 plain channel parallel"),
        (["--symmetric"], "INT4 k=2 residual channel symmetric parallel"),
        (["-k", "3"], "INT4 k=3 min_error channel parallel"),
        (["--granularity", "tensor"], "INT4 k=2 residual tensor parallel"),
        (["--strategy", "min_error"], "INT4 k=3 min_error channel parallel"),
        (["--layout", "parallel"], "INT4 k=3 min_error channel parallel"),
        (["--preset", "paper"], "INT4 k=3 kmeans tensor parallel"),
        (["--target", "intel-npu"], "INT4 k=2 residual channel symmetric parallel"),
    ],
    ids=" ".join,
)
def test_the_best_choice_is_the_default(source, tmp_path, said, spec):
    """What was not said is chosen for integer layers; a strategy, a layout or a preset leaves the rest as it is elsewhere."""
    out = tmp_path / "out.onnx"
    run = CliRunner().invoke(app, ["quantize", str(source), "-o", str(out), "--json", str(tmp_path / "r.json"), *said])
    assert run.exit_code == 0, run.exception
    assert str(QuantSpec(**json.loads((tmp_path / "r.json").read_text())["nodes"][0]["spec"])) == spec


@pytest.mark.parametrize(
    "words",
    [
        ["quantize", "m.onnx", "-o", "LONG"],
        ["quantize", "m.onnx", "-o", "o.onnx", "--json", "LONG"],
        ["verify", "LONG", "LONG"],
    ],
    ids=" ".join,
)
def test_paths_that_are_too_long(source, monkeypatch, capsys, words):
    """A path that the system refuses is one message, no traceback."""
    monkeypatch.chdir(source.parent)
    monkeypatch.setattr("sys.argv", ["splitquant", *(word.replace("LONG", "a" * 400 + ".onnx") for word in words)])
    with pytest.raises(SystemExit) as found:
        run()
    assert found.value.code == 1
    assert "File name too long; choose another path" in capsys.readouterr().err
