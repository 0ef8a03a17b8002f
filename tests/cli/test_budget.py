"""`splitquant quantize` by size: what is printed, saved and drawn, and what makes no sense."""

from __future__ import annotations

import json
import sys

import pytest

from builders.folders import tiny_folder, tree

QUICK = ("--granularity", "channel", "--strategy", "min_error")  # a small pool


@pytest.fixture
def source(tmp_path):
    """A tiny float folder."""
    return tiny_folder(tmp_path / "m")


def test_dry_run_shows_the_plan_and_the_frontier(cli, source, tmp_path):
    code, out, err = cli("quantize", source, "-o", tmp_path / "q", "--target-bits", 5, "--dry-run", *QUICK)
    assert code == 0
    assert not (tmp_path / "q").exists()
    assert "linear: INT" in out
    rows = [line for line in out.splitlines() if line.rstrip().endswith("dB") or "<- this plan" in line]
    assert 8 <= len(rows) <= 17
    assert sum("<- this plan" in row for row in rows) == 1
    assert "bits/weight" in out
    assert " O" in out
    assert "at most" in err


def test_json_holds_the_frontier(cli, source, tmp_path):
    args = ("quantize", source, "-o", tmp_path / "q", "--target-bits", 5, "--dry-run", "--json", "-", *QUICK)
    code, out, _ = cli(*args)
    data = json.loads(out)
    assert code == 0
    (chosen,) = [row for row in data["frontier"] if row["chosen"]]
    assert chosen["bits_per_weight"] <= 5
    sizes = [row["total_bytes"] for row in data["frontier"]]
    assert sizes == sorted(sizes)


def test_target_size_is_kept(cli, source, tmp_path):
    code, out, _ = cli("quantize", source, "-o", tmp_path / "q", "--target-size", "28kB", *QUICK)
    assert code == 0
    assert "SQNR" in out
    assert sum(len(data) for data in tree(tmp_path / "q").values()) <= 28_000


def test_plan_saved_edited_and_fed_back(cli, source, tmp_path):
    file = tmp_path / "plan.json"
    planned = ("quantize", source, "-o", tmp_path / "q", "--target-bits", 5, *QUICK)
    assert cli(*planned, "--dry-run", "--save-plan", file)[0] == 0
    data = json.loads(file.read_text())
    data["tensors"]["lm_head.weight"] = "keep"
    data["tensors"]["model.layers.0.mlp.up_proj.weight"] = {"bits": 2, "clusters": 1}
    file.write_text(json.dumps(data))
    code, out, _ = cli("quantize", source, "-o", tmp_path / "q", "--plan", file, "-v")
    assert code == 0
    assert "kept by the plan file" in out
    config = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    entry = config["tensors"]["model.layers.0.mlp.up_proj.weight"]
    assert config["specs"][entry["spec"]]["bits"] == 2
    assert "lm_head.weight" not in config["tensors"]
    assert cli("verify", source, tmp_path / "q")[0] == 0


def test_a_plan_on_standard_output_is_alone_there(cli, source, tmp_path):
    code, out, _ = cli("quantize", source, "-o", tmp_path / "a", "--dry-run", "--save-plan", "-")
    assert code == 0
    assert json.loads(out)["plan_version"] == 1


def test_no_such_folder_for_a_plan(cli, source, tmp_path):
    code, _, err = cli("quantize", source, "-o", tmp_path / "a", "--save-plan", tmp_path / "no" / "plan.json")
    assert code == 1
    assert "choose another file" in err


def test_a_usual_plan_can_be_saved_too(cli, source, tmp_path):
    assert cli("quantize", source, "-o", tmp_path / "a", "--save-plan", tmp_path / "plan.json")[0] == 0
    assert cli("quantize", source, "-o", tmp_path / "b", "--plan", tmp_path / "plan.json")[0] == 0
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert a["model.safetensors"] == b["model.safetensors"]


@pytest.mark.parametrize("ending", ["svg", "png", "html"])
def test_plot(cli, source, tmp_path, ending):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"frontier.{ending}"
    args = ("quantize", source, "-o", tmp_path / "q", "--target-bits", 5, "--dry-run", "--plot", file, *QUICK)
    assert cli(*args)[0] == 0
    data = file.read_bytes()
    assert data.startswith({"svg": b"<?xml", "png": b"\x89PNG", "html": b"<!doctype html>"}[ending])
    assert cli(*args)[0] == 0
    assert file.read_bytes() == data


def test_plot_without_matplotlib(cli, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    args = ("quantize", source, "-o", tmp_path / "q", "--target-bits", 5, "--plot", tmp_path / "p.svg")
    code, _, err = cli(*args)
    assert code == 1
    assert "pip install 'splitquant[plot]'" in err


def test_weighting_file(cli, source, tmp_path):
    (tmp_path / "w.json").write_text('{"*.up_proj.weight": 1000, "lm_head.weight": 0}')
    args = ("quantize", source, "-o", tmp_path / "q", "--target-bits", 5, "--weighting", tmp_path / "w.json", *QUICK)
    assert cli(*args)[0] == 0
    report = json.loads((tmp_path / "q" / "splitquant_report.json").read_text())
    bits = {tensor["name"]: 8 * tensor["stored_bytes"] / (tensor["source_bytes"] / 2) for tensor in report["tensors"]}
    assert bits["lm_head.weight"] < 3
    assert bits["model.layers.1.mlp.up_proj.weight"] > 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target-bits", 4, "--target-size", "1MB"), "give one of target-bits and target-size"),
        (("--target-bits", 4, "--preset", "paper"), "the preset paper decides everything"),
        (("--target-size", "soon"), "'soon' is not a size"),
        (("--target-bits", 1), "the smallest possible here is"),
        (("--target-size", "1kB"), "the smallest plan makes an output of"),
        (("--target-bits", 4, "-k", 3, "--strategy", "residual", "--bits", 4), "residual with 3 clusters of 4 bits"),
        (("--target-bits", 4, "--plan", "p.json"), "leave out target-bits"),
        (("--plan", "p.json", "--bits", 4, "--include", "x"), "leave out bits, include"),
        (("--plan", "p.json"), "p.json: cannot be read"),
        (("--target-bits", 4, "--strategy", "foo"), "strategy is 'foo'; expected one of"),
        (("--target-bits", 6, "--strategy", "residual", "--layout", "fused"), "is always layout parallel"),
        (("--strategy", "residual", "--layout", "fused"), "is always layout parallel; leave one of them out"),
        (("--save-plan", "x.json", "--json", "x.json"), "--json, --save-plan, --plot and --report are the same file"),
        (("--save-plan", "-", "--json", "-"), "--json, --save-plan, --plot and --report are the same file"),
        (("--weighting", "relative"), "weighting needs target-bits or target-size"),
        (("--plot", "p.svg"), "--plot needs --target-bits or --target-size"),
        (("--target-bits", 4, "--plot", "p.gif"), "expected a file that ends in .svg, .png, .html"),
        (("--target-bits", 4, "--weighting", "loud"), "loud: cannot be read"),
    ],
    ids=str,
)
def test_wrong_use_exits_with_2(cli, source, tmp_path, options, message):
    code, out, err = cli("quantize", source, "-o", tmp_path / "q", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "q").exists()
