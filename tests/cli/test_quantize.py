"""`splitquant quantize` of folders: its options, its report, what it writes and what it leaves alone."""

from __future__ import annotations

import json
import re

import pytest

from builders.commands import Done, process, refused
from builders.folders import (
    CONFIG,
    normal,
    read_folder,
    tiny_tensors,
    tree,
    write_folder,
)
from splitquant import api
from splitquant.core.spec import PAPER, QuantSpec


def test_quiet_prints_nothing(cli, tmp_path, source):
    """With -q nothing is printed by any verb."""
    for args in (
        ("quantize", source, "-o", tmp_path / "q", "-q", "-v"),
        ("quantize", source, "-o", tmp_path / "q2", "-q", "--dry-run"),
        ("verify", source, tmp_path / "q", "-q"),
        ("dequantize", tmp_path / "q", "-o", tmp_path / "f", "--quiet"),
    ):
        assert cli(*args) == Done(0, "", "")


def test_verbose_lists_every_tensor(tmp_path, source):
    """With -v (and by inspect) every tensor is listed, in a pipe on one line of its own."""
    for args in (("quantize", source, "-o", tmp_path / "q", "--dry-run", "-v"), ("inspect", source)):
        lines = process(*args).out.splitlines()
        for name in tiny_tensors():
            assert len([line for line in lines if line.startswith(f"{name} ")]) == 1, name


def test_json(cli, tmp_path, source):
    """--json writes the report to a file, or to standard output alone."""
    done = cli("quantize", source, "-o", tmp_path / "q", "--json", tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert done.out != ""
    assert data["run"]["threads"] >= 1
    folder = json.loads((tmp_path / "q/splitquant_report.json").read_text())
    assert data["tensors"] == folder["tensors"]
    for args in (
        ("quantize", source, "-o", tmp_path / "q", "--force", "--json", "-"),
        ("quantize", source, "-o", tmp_path / "q2", "--json", "-", "-q", "-v"),
        ("inspect", tmp_path / "q", "--json", "-"),
    ):
        done = cli(*args)
        assert done.code == 0
        assert json.loads(done.out)["tensors"] == folder["tensors"]
    for args in (
        ("inspect", source, "--json", "-"),
        ("quantize", source, "-o", tmp_path / "q3", "--dry-run", "--json", "-"),
    ):
        planned = json.loads(cli(*args).out)["tensors"]
        assert [(t["name"], t["stored_bytes"]) for t in planned] == [
            (t["name"], t["stored_bytes"]) for t in folder["tensors"]
        ]
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_json_to_nowhere_is_refused_before_the_work(cli, tmp_path, source):
    """A report that cannot be written is found before the run, not after it."""
    done = cli("quantize", source, "-o", tmp_path / "q", "--json", tmp_path / "no/such/r.json")
    assert done.code in (1, 2)
    assert done.err.startswith("error: ")
    assert "r.json" in done.err
    assert not (tmp_path / "q").exists()


def test_dry_run_writes_nothing_and_tells_the_sizes(cli, tmp_path, source):
    """--dry-run writes nothing, and its sizes are those of the run."""
    before = tree(tmp_path)
    planned = cli("quantize", source, "-o", tmp_path / "q", "--dry-run")
    assert planned.code == 0
    assert tree(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    real = cli("quantize", source, "-o", tmp_path / "q")
    sizes = re.compile(r"[\d.]+ [kMG]?B\b")
    assert sizes.findall(planned.out) == sizes.findall(real.out) != []
    data = json.loads(cli("quantize", source, "-o", tmp_path / "q2", "--dry-run", "--json", "-").out)
    stored = sum(len(tensor.data) for tensor in read_folder(tmp_path / "q").values())
    assert sum(tensor["stored_bytes"] for tensor in data["tensors"]) == stored


def test_dry_run_needs_no_free_destination(cli, tmp_path, source):
    """A plan can be seen whatever is at the destination."""
    (tmp_path / "q").mkdir()
    (tmp_path / "q/x").write_text("x")
    assert cli("quantize", source, "-o", tmp_path / "q", "--dry-run").code == 0
    assert tree(tmp_path / "q") == {"x": b"x"}


def test_preset_paper(cli, tmp_path, source):
    """--preset paper is its explicit options, and options win over it."""
    explicit = ["--bits", "4", "-k", "3", "--strategy", "kmeans", "--granularity", "tensor", "--layout", "parallel"]
    cli("quantize", source, "-o", tmp_path / "q1", "--preset", "paper")
    cli("quantize", source, "-o", tmp_path / "q2", *explicit)
    assert tree(tmp_path / "q1") == tree(tmp_path / "q2")
    api.quantize(source, tmp_path / "q3", PAPER)
    assert tree(tmp_path / "q1") == tree(tmp_path / "q3")
    cli("quantize", source, "-o", tmp_path / "q4", "--preset", "paper", "--bits", "3", "--clusters", "2")
    specs = json.loads((tmp_path / "q4/config.json").read_text())["quantization_config"]["specs"]
    assert {**PAPER.to_stored(), "bits": 3, "clusters": 2} in specs


def test_defaults_are_those_of_the_library(cli, tmp_path, source):
    """The command without options is the function without options; `best` is the default preset."""
    cli("quantize", source, "-o", tmp_path / "q1")
    cli("quantize", source, "-o", tmp_path / "q2", "--preset", "best", "--threads", "1", "--max-memory", "2GiB")
    api.quantize(source, tmp_path / "q3")
    assert tree(tmp_path / "q1") == tree(tmp_path / "q2") == tree(tmp_path / "q3")


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (["--bits", "3"], {"bits": 3, "clusters": 4}),
        (["-k", "1"], {"clusters": 1}),
        (["-k", "1", "--zero-points", "shared"], {"clusters": 1, "zero_points": "shared"}),
        (["--clusters", "8"], {"clusters": 8}),
        (["--layout", "parallel"], {"layout": "parallel", "clusters": 3}),
        (["--symmetric"], {"symmetric": True}),
        (["--granularity", "group:16"], {"granularity": "group:16"}),
        (["--strategy", "kmeans"], {"strategy": "kmeans"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_reach_the_spec(cli, tmp_path, source, options, spec):
    """Every option of a spec arrives, and the others keep their defaults."""
    assert cli("quantize", source, "-o", tmp_path / "q", *options).code == 0
    specs = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]["specs"]
    assert QuantSpec(**spec).to_stored() in specs


@pytest.mark.parametrize(("choice", "bits"), [("keep", None), ("4", 4), ("8", 8)])
def test_embeddings(cli, tmp_path, source, choice, bits):
    """Embeddings and heads are kept, or get so many bits per channel."""
    assert cli("quantize", source, "-o", tmp_path / "q", "--embeddings", choice).code == 0
    report = json.loads((tmp_path / "q/splitquant_report.json").read_text())["tensors"]
    for item in report:
        if item["name"] in ("model.embed_tokens.weight", "lm_head.weight"):
            assert (item["spec"] and item["spec"]["bits"]) == bits
            assert item["spec"] is None or (item["spec"]["clusters"], item["spec"]["symmetric"]) == (1, True)


def test_include_and_exclude(cli, tmp_path, source):
    """Patterns may be given several times; include wins over exclude, both over the rules."""
    done = cli(
        *("quantize", source, "-o", tmp_path / "q", "--exclude", "*.mlp.*", "--exclude", "lm_head.weight"),
        *("--include", "*.up_proj.weight", "--include", "*.mlp.gate.weight"),
    )
    assert done.code == 0
    report = json.loads((tmp_path / "q/splitquant_report.json").read_text())["tensors"]
    found = {item["name"]: (item["outcome"], item["reason"]) for item in report}
    assert found["model.layers.1.mlp.up_proj.weight"][0] == "quantized"
    assert found["model.layers.1.mlp.down_proj.weight"] == ("kept", "excluded by '*.mlp.*'")
    assert found["lm_head.weight"] == ("kept", "excluded by 'lm_head.weight'")
    assert found["model.embed_tokens.weight"][0] == "quantized"


def test_strict(cli, tmp_path, source):
    """--strict fails where a weight would be kept, names it, and writes nothing; else it changes nothing."""
    done = cli("quantize", source, "-o", tmp_path / "q", "--strict", "--exclude", "*.layers.1.mlp.up_proj.weight")
    refused(done, 1, "--strict: 1 weights would be kept", "'model.layers.1.mlp.up_proj.weight'", "excluded by")
    assert not (tmp_path / "q").exists()
    assert cli("quantize", source, "-o", tmp_path / "q", "--strict").code == 0


def test_the_folder_one_is_in_is_never_replaced(cli, tmp_path, source, monkeypatch):
    """`-o .` is refused, with --force too."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(cli("quantize", source, "-o", ".", "--force"), 1, "the folder you are in")


def test_json_never_overwrites_the_model(cli, tmp_path, source):
    """--json at the place of the source or of the destination is refused before any work."""
    pytest.importorskip("onnx")
    from builders.onnx_models import matmul

    model = tmp_path / "model.onnx"
    model.write_bytes(matmul().SerializeToString())
    before = model.read_bytes()
    for verb in ("quantize", "split"):
        for place in (model, tmp_path / "out.onnx"):
            refused(cli(verb, model, "-o", tmp_path / "out.onnx", "--json", place), 1, "choose another file")
    assert model.read_bytes() == before
    assert not (tmp_path / "out.onnx").exists()
    refused(cli("quantize", source, "-o", tmp_path / "q", "--json", tmp_path / "q"), 1, "choose another file")


def test_strict_counts_what_is_of_unknown_use(cli, tmp_path):
    """Raw parameters that hold more than one weight in a hundred do not pass --strict; small ones, such as tokens, do."""
    tensors = {"a.weight": normal(1, 64, 64), "cls_token": normal(2, 1, 1, 32)}
    small = write_folder(tmp_path / "small", tensors, config=CONFIG)
    assert cli("quantize", small, "-o", tmp_path / "q", "--strict").code == 0
    large = write_folder(tmp_path / "large", {**tensors, "attn.kernel": normal(3, 64, 4, 16)}, config=CONFIG)
    done = cli("quantize", large, "-o", tmp_path / "q2", "--strict")
    refused(
        done, 1, "--strict: 50% of the weights", "2 parameters of unknown use", "'attn.kernel' [64, 4, 16]", "--include"
    )
    assert not (tmp_path / "q2").exists()
    assert cli("quantize", large, "-o", tmp_path / "q2", "--strict", "--include", "attn.kernel").code == 0


def test_a_folder_without_a_configuration_ends_with_a_note(cli, tmp_path, source):
    """The last lines say that nothing but dequantize can read the output of a folder that says not which model it is."""
    (source / "config.json").unlink()
    lines = cli("quantize", source, "-o", tmp_path / "q").err.splitlines()
    (note,) = [line for line in lines[-3:] if line.startswith("note: ")]
    assert "has no config.json, so transformers cannot load the output" in note
    assert "splitquant.load" not in lines[-1]
