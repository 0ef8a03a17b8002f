"""`splitquant evaluate`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

from builders.commands import refused
from builders.language_models import ARC, build, byte_tokenizer

if not all(find_spec(need) for need in ("torch", "transformers", "safetensors")):
    pytest.skip("the extra 'hf' is not installed", allow_module_level=True)

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A float folder, its quantized one, a text and questions."""
    import splitquant

    base = tmp_path_factory.mktemp("models")
    build("llama").save_pretrained(base / "float")
    byte_tokenizer(begins=True).save_pretrained(base / "float")
    splitquant.quantize(base / "float", base / "int3", splitquant.QuantSpec(bits=3), threads=1)
    (base / "text").write_text("A cat sat on the mat. " * 8)
    (base / "arc.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ARC))
    return base


def test_table(cli, models):
    """One row per measure with standard errors; the words about what the figures mean on standard error."""
    done = cli(
        "evaluate", models / "int3", "--against", models / "float", "--text", models / "text", "--tokens", 100,
        "--window", 40, "--stride", 20, "--choices", models / "arc.jsonl", "--limit", 8,
    )  # fmt: skip
    assert done.code == 0, done.err
    for row in (
        "perplexity",
        "bits per byte",
        "KL(float || model)",
        "same likeliest token",
        "cloze: acc ",
        "cloze: acc_norm",
    ):
        assert row in done.out
    assert done.out.splitlines()[0].split() == ["measure", "int3", "float", "(float)"]
    assert done.out.count("±") == 10
    assert "100 tokens in windows of 40, stride 20, each after the token that begins a text; 100 scored" in done.err
    assert "8 questions cannot tell this from chance (McNemar's p =" in done.err


def test_json(cli, models):
    """The whole result, alone on standard output; the same twice."""
    asked = ("evaluate", models / "int3", "--choices", models / "arc.jsonl", "--form", "letters", "--json", "-")
    done = cli(*asked, "--limit", 5, "--seed", 3)
    found = json.loads(done.out)
    assert (found["model"], found["float"], found["choices"][0]["questions"]) == ("int3", None, 5)
    assert len(found["choices"][0]["answers"][0]["scores"]) in (3, 4)
    assert done.err == ""
    assert cli(*asked, "--limit", 5, "--seed", 3).out == done.out


def test_state(cli, models, tmp_path):
    """A state is filled, and the next run gives the same."""
    asked = ("evaluate", models / "float", "--choices", models / "arc.jsonl", "--state", tmp_path / "s", "--json", "-")
    first = cli(*asked)
    lines = (tmp_path / "s").read_text()
    assert len(lines.splitlines()) == 1 + len(ARC)
    assert cli(*asked).out == first.out
    assert (tmp_path / "s").read_text() == lines


def test_packed(cli, models):
    """Weights that stay packed give the same figures."""
    asked = ("evaluate", models / "int3", "--text", models / "text", "--json", "-")
    values = [json.loads(cli(*asked, *more).out)["perplexity"]["loss"]["value"] for more in ((), ("--packed",))]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_images(cli, tmp_path):
    """Images through an .onnx file, prepared by --mean and --std."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    graph = onnx.parser.parse_graph("g (float[N, 3, 2, 2] x) => (float[N, 3, 1, 1] y) { y = GlobalAveragePool(x) }")
    opsets = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    pixels = np.full((4, 3, 2, 2), 100, np.uint8)
    np.savez(tmp_path / "i.npz", images=pixels, labels=np.array([1, 1, 1, 0]))
    asked = ("evaluate", tmp_path / "m.onnx", "--images", tmp_path / "i.npz")
    done = cli(*asked, "--mean", "0.5,0.1,0.5", "--std", "1,1,1")
    assert "75.0 ± 25.0 %" in done.out
    refused(cli(*asked), 2, "nothing says how they are prepared")
    refused(cli(*asked, "--mean", "a,b", "--std", "1,1,1"), 2, "--mean is 'a,b'; expected a number per channel")


def test_refused(cli, models, tmp_path):
    """One line each, naming what to do."""
    refused(cli("evaluate", models / "float"), 2, "nothing is asked; give --text")
    refused(cli("evaluate", tmp_path, "--text", models / "text"), 1, "is no model folder (it has no config.json)")
    refused(cli("evaluate", models / "float", "--text", tmp_path / "no"), 1, "cannot be read")
    (tmp_path / "q").write_text(json.dumps(ARC[0]) + "\n{}\n")
    refused(
        cli("evaluate", models / "float", "--choices", tmp_path / "q"),
        1,
        f"{tmp_path / 'q'}: line 2 has no 'answerKey'",
    )
    refused(cli("evaluate", models / "float", "--text", models / "text", "--window", 500), 2, "reads 128 at most")
    refused(
        cli("evaluate", models / "float", "--text", models / "text", "--json", models / "text"), 1, "is the source or"
    )
    refused(
        cli("evaluate", models / "float", "--text", models / "text", "--state", models / "text"),
        1,
        "choose another file",
    )
    if find_spec("lm_eval") is None:
        refused(cli("evaluate", models / "float", "--tasks", "arc_easy"), 1, "pip install 'splitquant[lm-eval]'")
