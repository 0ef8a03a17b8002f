"""Everything in one go, from folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from splitquant.errors import SourceError, SpecError
from splitquant.evaluate import Asked, Run, choices, divergence, evaluate, open_language_model, paired_answers

TEXT = "A cat sat on the mat. " * 8


def test_everything(folders, arc, tmp_path):
    """The results are those of the single measures, and the report is JSON."""
    text = tmp_path / "t.txt"
    text.write_text(TEXT)
    told = []
    run = Run(4, lambda *what: told.append(what))
    found = evaluate(folders[1], Asked(text=text, choices=(arc,), window=40, limit=10), against=folders[0], run=run)
    one, other = (open_language_model(folder) for folder in folders)
    assert found.divergence == divergence(one, other, TEXT, window=40, run=Run(4))
    assert found.perplexity == found.divergence.quantized
    (asked,) = found.choices
    assert asked.answers == choices(other, arc, limit=10, run=Run(4))
    assert asked.float_answers == choices(one, arc, limit=10, run=Run(4))
    assert asked.pairs == tuple(paired_answers(asked.float_answers, asked.answers, norm=norm) for norm in (False, True))
    assert (found.model, found.float_model) == ("int3", "float")
    assert {task for task, *_ in told} == {"the float model", "divergence", "choices, cloze"}
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["divergence"]["kl"]["value"] == found.divergence.kl.value
    assert data["choices"][0]["pairs"][0]["by"] == "acc"


def test_alone(folders, arc, tmp_path):
    """Without a float model there are no pairs, and perplexity is by itself."""
    (tmp_path / "t").write_text(TEXT)
    found = evaluate(folders[0], Asked(text=tmp_path / "t", choices=(arc,), form="letters"))
    assert found.divergence is None
    assert found.perplexity is not None
    assert found.choices[0].pairs == ()
    assert found.choices[0].float_answers is None


@pytest.mark.parametrize(
    ("asked", "source", "against", "says"),
    [
        ({}, "m", None, "nothing is asked; give --text"),
        ({"embeddings": "t"}, "m", None, "give the float model with --against"),
        ({"text": "t"}, "m.onnx", None, "of .onnx files only --images is evaluated"),
        ({"text": "t"}, "m", "f.onnx", "f.onnx: of .onnx files only"),
        ({"text": "t", "limit": 0}, "m", None, "the limit is 0"),
        ({"images": "i", "mean": (0.5,)}, "m", None, "--mean and --std go together"),
    ],
)
def test_refused(asked, source, against, says):
    """Before any file is opened."""
    paths = {key: Path(value) if isinstance(value, str) else value for key, value in asked.items()}
    with pytest.raises(SpecError, match=says):
        evaluate(source, Asked(**paths), against=against)


def test_files_come_first(tmp_path, monkeypatch):
    """A wrong file of questions costs no loading of models."""
    (tmp_path / "q").write_text("oops\n")
    with pytest.raises(SourceError, match="line 1 is not JSON"):
        evaluate(tmp_path / "no model", Asked(choices=(tmp_path / "q",)))


def test_images_in_pairs(tmp_path):
    """Two ONNX files, one of which always says class 0."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    opsets = [onnx.helper.make_opsetid("", 21)]
    for name, body in (
        ("a", "y = ReduceMean<keepdims = 0>(x, d)"),
        ("b", "z = ReduceMean<keepdims = 0>(x, d) y = Mul(z, o)"),
    ):
        text = f"g (float[N, 2, 1, 1] x) => (float[N, 2] y) <int64[2] d = {{2, 3}}, float[2] o = {{1, 0}}> {{ {body} }}"
        graph = onnx.parser.parse_graph(text)
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / f"{name}.onnx")
    pixels = np.array([[1, 2], [2, 1], [1, 3], [4, 1]], np.float32).reshape(4, 2, 1, 1)
    np.savez(tmp_path / "i.npz", x=pixels, y=np.array([1, 0, 1, 0]))
    found = evaluate(tmp_path / "b.onnx", Asked(images=tmp_path / "i.npz"), against=tmp_path / "a.onnx")
    assert (found.float_images.top1.value, found.images.top1.value) == (1.0, 0.5)
    assert (found.image_pairs.lost, found.image_pairs.won) == (2, 0)
