"""The verbs over .onnx files: what they write and print."""

from __future__ import annotations

import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from typer.testing import CliRunner  # noqa: E402

from builders.commands import Done, refused  # noqa: E402
from builders.onnx_models import all_bytes, heavy, matmul, model, several, value  # noqa: E402
from splitquant import QuantSpec  # noqa: E402
from splitquant.cli.main import app, run  # noqa: E402
from splitquant.errors import DestinationError, SourceError, SpecError  # noqa: E402

QUICK = ("--granularity", "channel", "--strategy", "min_error", "--symmetric")  # a small pool


@pytest.fixture
def source(tmp_path):
    onnx.save(matmul(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_split_then_verify(cli, source, tmp_path):
    """split prints what became of the nodes, verify the outputs."""
    out = tmp_path / "out.onnx"
    done = cli("split", source, "-o", out)
    assert done.code == 0
    assert "linear: split for INT4 k=3 min_error channel parallel unpolished, 3 x float" in done.out
    assert f"written to {out}; next: splitquant verify {source} {out}" in done.err
    listed = cli("split", source, "-o", tmp_path / "v.onnx", "-v").out.splitlines()
    assert [line.split()[0] for line in listed if "3 x float" in line] == ["fc", "linear:"]
    done = cli("verify", source, out, "--min-sqnr", 100)
    assert done.code == 0
    assert "SQNR" in done.out
    assert "checker accepts" in done.err


def test_what_is_kept_is_told(cli, tmp_path):
    """Every reason for which nodes or weights stay has a row, with their number and bytes; -v lists each."""
    onnx.save(several(), tmp_path / "m.onnx")
    done = cli(
        "quantize",
        tmp_path / "m.onnx",
        "-o",
        tmp_path / "q.onnx",
        "--exclude",
        "[SD]",
        "--embeddings",
        "keep",
        "--bits",
        4,
    )
    assert done.code == 0
    assert "kept: excluded by '[SD]'" in done.out
    assert "kept: embeddings are kept" in done.out
    assert "note: opset raised from 17 to 21" in done.err
    listed = cli("quantize", tmp_path / "m.onnx", "-o", tmp_path / "v.onnx", "-v").out
    assert all(name in listed for name in ("embed", "conv", "gemm", "first", "second", "down", "head"))
    assert "shares its weight with a node before" in listed


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_quantize_then_verify_with_inputs(cli, source, tmp_path, form):
    """quantize writes its report as JSON; verify takes inputs from an .npz file and counts kernels."""
    out = tmp_path / "out.onnx"
    assert (
        cli("quantize", source, "-o", out, "--format", form, "--json", tmp_path / "report.json", "-v", "-k", 2).code
        == 0
    )
    report = json.loads((tmp_path / "report.json").read_text())
    (row,) = report["tensors"]
    assert (row["name"], row["outcome"], row["kind"], row["weight"], row["dtype"]) == (
        *("fc", "quantized", "MatMul", "W", "F32"),
    )
    assert (row["form"], row["parts"]) == ("QDQ" if form == "qdq" else "MatMulNBits", 2)
    np.savez(tmp_path / "inputs.npz", x=heavy((2, 64)))
    done = cli("verify", source, out, "--inputs", tmp_path / "inputs.npz")
    assert "2 low-bit branches: 2 use a low-bit kernel" in done.err


def test_quiet_prints_nothing(cli, source, tmp_path):
    """-q prints nothing at all."""
    out = tmp_path / "out.onnx"
    for args in (
        ("split", source, "-o", out, "-q"),
        ("verify", source, out, "-q"),
        ("quantize", source, "-o", tmp_path / "q.onnx", "-q", "-v"),
        ("quantize", source, "-o", tmp_path / "q2.onnx", "-q", "--dry-run"),
        ("quantize", source, "-o", tmp_path / "q2.onnx", "-q", "--target-bits", 6, *QUICK),
    ):
        assert cli(*args) == Done(0, "", "")


def test_inputs_that_are_no_npz(cli, source, tmp_path):
    """A file of inputs that is none is named."""
    assert cli("split", source, "-o", tmp_path / "out.onnx").code == 0
    np.save(tmp_path / "one.npy", heavy((2, 64)))
    np.savez(tmp_path / "good.npz", x=heavy((2, 64)))
    good = (tmp_path / "good.npz").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    damaged = {"empty": b"", "half": good[: len(good) // 2], "flipped": bytes(flipped), "garbage": b"PK\x03\x04garbage"}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
    for name in ("m.onnx", "one.npy", *damaged):
        done = cli("verify", source, tmp_path / "out.onnx", "--inputs", tmp_path / name)
        refused(done, 1, f"{name}: is no .npz file", "numpy.savez")


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
    assert "is no .onnx file; leave out format" in str(run.exception)


@pytest.mark.parametrize("name", ["m.onnx", "weights.bin", "out.onnx", "out.onnx.data"])
@pytest.mark.parametrize("option", ["--json", "--save-plan"])
def test_reports_replace_no_model(cli, tmp_path, name, option):
    """--json at a place of the source or the result is refused, external data included; so are plans."""
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(matmul(), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = source.read_bytes(), (tmp_path / "weights.bin").read_bytes()
    says = "is the source or the destination itself"
    refused(cli("quantize", source, "-o", out, option, tmp_path / name), 1, says)
    if option == "--json":
        refused(cli("split", source, "-o", out, "--json", tmp_path / name), 1, says)
    assert not out.exists()
    assert cli("split", source, "-o", out).code == 0
    if option == "--json":
        refused(cli("verify", source, out, "--json", tmp_path / name), 1, says)
    assert (source.read_bytes(), (tmp_path / "weights.bin").read_bytes()) == before


def test_verify_writes_json_and_takes_sizes(source, tmp_path):
    """verify --json has every figure; --size sets an open dimension, and a name or a number that is none is told."""
    out = tmp_path / "out.onnx"
    assert CliRunner().invoke(app, ["quantize", str(source), "-o", str(out), "-k", "2"]).exit_code == 0
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
    (node,) = [node for node in onnx.load(out).graph.node if node.op_type == "MatMulNBits"]
    found = {attribute.name: attribute.i for attribute in node.attribute}
    assert (found["block_size"], found["accuracy_level"]) == (32, 1)
    (tmp_path / "config.json").write_text("{}")
    run = CliRunner().invoke(app, ["quantize", str(tmp_path), "-o", str(tmp_path / "out"), "--block-size", "32"])
    assert isinstance(run.exception, SpecError)
    assert "is no .onnx file; leave out block_size" in str(run.exception)


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


def test_a_checker_that_refuses_both(cli, tmp_path):
    """What the checker says of source and result alike is printed."""
    made = matmul()
    made.graph.node[0].domain = "ai.onnx"
    onnx.save(made, tmp_path / "m.onnx")
    done = cli("verify", tmp_path / "m.onnx", tmp_path / "m.onnx")
    assert done.code == 0
    assert "the onnx checker refuses both models" in done.err


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
        assert "they are of matmulnbits (--format matmulnbits)" in str(run.exception)


@pytest.mark.parametrize(
    ("said", "spec"),
    [
        ([], "INT8 plain channel parallel"),
        (["--bits", "4"], "INT4 plain group:32 parallel"),
        (["-k", "2"], "INT4 k=2 residual channel parallel"),
        (["--target", "onnxruntime"], "INT8 plain channel parallel"),
        (["--target", "openvino", "--bits", "4"], "INT4 plain group:32 parallel"),
        (["--bits", "4", "--activations", "int8-tensor"], "INT4 plain channel parallel"),
        (["--bits", "8"], "INT8 plain channel parallel"),
        (["--symmetric"], "INT8 plain channel symmetric parallel"),
        (["-k", "3"], "INT4 k=3 min_error channel parallel"),
        (["--granularity", "tensor"], "INT8 plain tensor parallel"),
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
    assert str(QuantSpec(**json.loads((tmp_path / "r.json").read_text())["tensors"][0]["spec"])) == spec


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
    error = capsys.readouterr().err
    assert "File name too long" in error
    assert "choose another p" in error


@pytest.fixture
def larger(tmp_path):
    """A model of several layers."""
    onnx.save(several(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_dry_run_writes_nothing_and_tells_the_sizes(cli, larger, tmp_path):
    """--dry-run reads no weights and writes nothing; its rows and sizes are those of the run."""
    before = sorted(tmp_path.iterdir())
    planned = cli("quantize", larger, "-o", tmp_path / "q.onnx", "--dry-run")
    assert planned.code == 0
    assert sorted(tmp_path.iterdir()) == before
    done = cli("quantize", larger, "-o", tmp_path / "q.onnx", "--json", tmp_path / "r.json")
    assert done.code == 0
    assert "SQNR" not in planned.out
    assert "SQNR" in done.out
    planned = json.loads(cli("quantize", larger, "-o", tmp_path / "p.onnx", "--dry-run", "--json", "-").out)
    written = json.loads((tmp_path / "r.json").read_text())
    for row in written["tensors"]:
        row["figures"] = None
    assert planned["tensors"] == written["tensors"]
    assert planned.get("notes") == written.get("notes")


def test_dry_run_of_a_split(cli, larger, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = cli("split", larger, "-o", tmp_path / "s.onnx", "--dry-run", "-v")
    assert done.code == 0
    assert "an embedding is looked up, not multiplied" in done.out
    assert sorted(tmp_path.iterdir()) == before


def test_dry_run_of_a_split_tells_its_sizes(cli, tmp_path):
    """Float parts are k times as large as the weight, and a plan says so."""
    onnx.save(matmul(), tmp_path / "m.onnx")
    args = ("split", tmp_path / "m.onnx", "-o", tmp_path / "s.onnx", "--json", "-")
    (planned,) = json.loads(cli(*args, "--dry-run").out)["tensors"]
    (written,) = json.loads(cli(*args).out)["tensors"]
    for key in ("name", "outcome", "spec", "source_bytes", "stored_bytes"):
        assert planned[key] == written[key], key


def test_dry_run_needs_no_free_destination(cli, larger, tmp_path):
    (tmp_path / "q.onnx").write_bytes(b"mine")
    assert cli("quantize", larger, "-o", tmp_path / "q.onnx", "--dry-run").code == 0
    assert (tmp_path / "q.onnx").read_bytes() == b"mine"


def test_dry_run_shows_the_frontier(cli, larger, tmp_path):
    done = cli("quantize", larger, "-o", tmp_path / "q.onnx", "--target-bits", 6, "--dry-run", *QUICK)
    assert done.code == 0
    assert not (tmp_path / "q.onnx").exists()
    rows = [line for line in done.out.splitlines() if line.rstrip().endswith("dB") or "<- this plan" in line]
    assert len(rows) >= 4
    assert sum("<- this plan" in row for row in rows) == 1
    assert "at most" in done.err
    done = cli("quantize", larger, "-o", tmp_path / "q.onnx", "--target-bits", 6, "--dry-run", "--json", "-", *QUICK)
    (chosen,) = [row for row in json.loads(done.out)["frontier"] if row["chosen"]]
    assert chosen["bits_per_weight"] <= 6


def test_strict(cli, larger, tmp_path):
    """--strict fails where a weight would be kept, names it, and writes nothing; else it changes nothing."""
    done = cli("quantize", larger, "-o", tmp_path / "q.onnx", "--strict", "--exclude", "down")
    refused(done, 1, "--strict: ", "weights would be kept", "--dry-run -v")
    assert not (tmp_path / "q.onnx").exists()
    onnx.save(matmul(), tmp_path / "one.onnx")
    assert cli("quantize", tmp_path / "one.onnx", "-o", tmp_path / "q.onnx", "--strict").code == 0
    assert cli("quantize", tmp_path / "one.onnx", "-o", tmp_path / "r.onnx").code == 0
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "r.onnx").read_bytes()


def test_target_size_is_kept(cli, larger, tmp_path):
    code, out, err = cli("quantize", larger, "-o", tmp_path / "q.onnx", "--target-size", "60kB", *QUICK)
    assert code == 0
    assert "SQNR" in out
    assert "written to" in err
    assert all_bytes(tmp_path / "q.onnx") <= 60_000
    assert cli("verify", larger, tmp_path / "q.onnx").code == 0
    refused(
        cli("quantize", larger, "-o", tmp_path / "p.onnx", "--target-size", "1kB", *QUICK),
        2,
        "target-size is 1000 bytes; the smallest plan makes an output of",
    )
    assert not (tmp_path / "p.onnx").exists()


def test_plan_saved_edited_and_fed_back(cli, larger, tmp_path):
    """A plan names nodes; the same one gives the same bytes, an edited one does what it says."""
    file, first, again, edited = (tmp_path / name for name in ("plan.json", "a.onnx", "b.onnx", "c.onnx"))
    assert cli("quantize", larger, "-o", first, "--target-bits", 6, "--save-plan", file, *QUICK).code == 0
    assert cli("quantize", larger, "-o", again, "--plan", file).code == 0
    assert first.read_bytes() == again.read_bytes()
    data = json.loads(file.read_text())
    assert {"embed", "gemm", "first", "second", "down", "head"} <= set(data["tensors"])
    data["tensors"]["down"] = {"bits": 2, "clusters": 1, "layout": "parallel"}
    data["tensors"]["head"] = "keep"
    file.write_text(json.dumps(data))
    assert cli("quantize", larger, "-o", edited, "--plan", file, "--json", tmp_path / "r.json").code == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "r.json").read_text())["tensors"]}
    assert rows["down"]["spec"]["bits"] == 2
    assert (rows["head"]["outcome"], rows["head"]["reason"]) == ("kept", "kept by the plan file")
    assert cli("verify", larger, edited).code == 0
    planned = cli("quantize", larger, "-o", tmp_path / "d.onnx", "--plan", file, "--dry-run", "-v")
    assert planned.code == 0
    assert "kept by the plan file" in planned.out


def test_a_usual_plan_can_be_saved_too(cli, larger, tmp_path):
    assert cli("quantize", larger, "-o", tmp_path / "a.onnx", "--save-plan", tmp_path / "p.json").code == 0
    assert cli("quantize", larger, "-o", tmp_path / "b.onnx", "--plan", tmp_path / "p.json").code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    code, out, _ = cli("quantize", larger, "-o", tmp_path / "c.onnx", "--dry-run", "--save-plan", "-")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "p.json").read_text())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"down": {"bits": 4}}, "parallel"),  # fused clusters, for which ONNX has no operator
        ({"down": {"bits": 4, "clusters": 1, "strategy": "lloyd"}}, "lloyd"),
        ({"down": {"bits": 9}}, "p.json: tensor 'down': bits is 9"),
        ({"embed": {"bits": 4, "clusters": 2, "symmetric": True}}, "expected a plain symmetric spec"),
        ({"embed": {"bits": 8, "clusters": 1, "symmetric": True, "granularity": "group:16"}}, "channel or tensor"),
        ({"embed": {"bits": 8, "clusters": 1}}, "expected a plain symmetric spec"),
        ({"dawn": "keep"}, "p.json: names tensor 'dawn', which the model does not have; did you mean 'down'?"),
    ],
    ids=str,
)
def test_plans_that_cannot_be(cli, larger, tmp_path, tensors, message):
    """What no form of ONNX can say is refused in a plan file as it is elsewhere, before anything is written."""
    (tmp_path / "p.json").write_text(json.dumps({"plan_version": 1, "tensors": tensors}))
    done = cli("quantize", larger, "-o", tmp_path / "q.onnx", "--plan", tmp_path / "p.json")
    refused(done, 2, message)
    assert not (tmp_path / "q.onnx").exists()


def test_plans_that_matmulnbits_cannot_store(cli, larger, tmp_path):
    """Its groups are powers of two; a model that no runtime loads is never written."""
    spec = {"bits": 4, "clusters": 1, "granularity": "group:24"}
    (tmp_path / "p.json").write_text(json.dumps({"plan_version": 1, "tensors": {"down": spec}}))
    args = ("quantize", larger, "-o", tmp_path / "q.onnx", "--plan", tmp_path / "p.json", "--format", "matmulnbits")
    refused(cli(*args), 2, "MatMulNBits takes powers of two from 16 to 256")
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_plot(cli, larger, tmp_path, ending):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"frontier.{ending}"
    args = ("quantize", larger, "-o", tmp_path / "q.onnx", "--target-bits", 6, "--dry-run", "--plot", file, *QUICK)
    assert cli(*args).code == 0
    data = file.read_bytes()
    assert data.startswith({"svg": b"<?xml", "html": b"<!doctype html>"}[ending])
    assert cli(*args).code == 0
    assert file.read_bytes() == data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target-bits", 4, "--target-size", "1MB"), "give one of target-bits and target-size"),
        (("--target-bits", 4, "--preset", "paper"), "the preset paper decides everything"),
        (("--target-bits", 1, *QUICK), "the smallest possible here is"),
        (("--target-bits", 4, "--plan", "p.json"), "leave out target-bits"),
        (("--plan", "p.json", "--bits", 4, "--include", "x"), "leave out bits, include"),
        (("--plan", "p.json"), "p.json: cannot be read"),
        (("--plot", "p.svg"), "--plot needs --target-bits or --target-size"),
        (("--weighting", "relative"), "weighting needs target-bits or target-size"),
        (("--save-plan", "x.json", "--json", "x.json"), "--json, --save-plan, --plot and --report are the same file"),
        (("--exclude", "nothing*"), "the pattern 'nothing*' matches none of the"),
        (("--layout", "fused", "--strategy", "min_error"), "layout='parallel'"),
    ],
    ids=str,
)
def test_wrong_use_exits_with_2(cli, larger, tmp_path, options, message):
    refused(cli("quantize", larger, "-o", tmp_path / "q.onnx", *options), 2, message)
    assert not (tmp_path / "q.onnx").exists()


def test_the_remedy_works_for_names_that_look_like_globs(cli, tmp_path):
    """What the error advises is what helps, though the name is a class of characters as a glob."""
    weight = heavy((64, 64), 1)
    weight[3, 4] = np.nan
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "layers[0].weight"], ["h"], name="fc[0]"),
        onnx.helper.make_node("MatMul", ["h", "layers[1].weight"], ["y"], name="fc[1]"),
    ]
    weights = {"layers[0].weight": weight, "layers[1].weight": heavy((64, 64))}
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 64])], weights)
    onnx.save(made, tmp_path / "m.onnx")
    for verb in ("quantize", "split"):
        out = tmp_path / f"{verb}.onnx"
        done = cli(verb, tmp_path / "m.onnx", "-o", out)
        refused(done, 1, "tensor 'layers[0].weight' holds NaN", "--exclude 'layers[0].weight'")
        for name in ("layers[0].weight", "fc[0]"):
            done = cli(
                verb, tmp_path / "m.onnx", "-o", out, "--force", "--exclude", name, "--json", tmp_path / "r.json"
            )
            assert done.code == 0, done.err
            rows = {row["name"]: row["outcome"] for row in json.loads((tmp_path / "r.json").read_text())["tensors"]}
            assert (rows["fc[0]"], rows["fc[1]"]) == ("kept", "quantized" if verb == "quantize" else "split")
