"""Labelled images through modules, folders and ONNX files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from splitquant.errors import SourceError, SpecError
from splitquant.evaluate import Labelled, Run, images, of_module, open_classifier, read_images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def expected():
    """What the module below chooses: the brightest channel, prepared."""
    values = (PIXELS / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    return values.mean((2, 3)).argmax(1)


class Brightest(torch.nn.Module):
    """A score per channel."""

    def forward(self, pixels):
        return pixels.mean((2, 3))


def saved(tmp_path, **arrays):
    """An .npz file."""
    np.savez(tmp_path / "i.npz", **arrays)
    return tmp_path / "i.npz"


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_module(tmp_path, batch):
    """Bytes are prepared by the file's mean and std, and the share of right ones is counted."""
    labels = expected().copy()
    labels[:3] = (labels[:3] + 1) % 3
    file = saved(tmp_path, images=PIXELS, labels=labels, mean=MEAN, std=STD)
    found = images(of_module(Brightest()), read_images(file), run=Run(batch))
    assert found.chosen == tuple(expected())
    assert found.top1.value == 0.7


def test_floats_are_taken_as_they_are(tmp_path):
    """Float images need no preparation."""
    values = RNG.standard_normal((5, 3, 2, 2)).astype(np.float16)
    file = saved(tmp_path, x=values, y=np.zeros(5, np.uint8))
    assert images(of_module(Brightest()), read_images(file)).chosen == tuple(
        values.astype(np.float32).mean((2, 3)).argmax(1)
    )


def onnx_file(path, batch="N"):
    """The same as an ONNX file."""
    onnx = pytest.importorskip("onnx")
    text = f"g (float[{batch}, 3, 4, 4] x) => (float[{batch}, 3, 1, 1] y) {{ y = GlobalAveragePool(x) }}"
    opsets = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(onnx.parser.parse_graph(text), opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("batch", ["N", 4])
def test_onnx(tmp_path, batch):
    """An .onnx file, with an open or a fixed batch."""
    pytest.importorskip("onnxruntime")
    model = open_classifier(onnx_file(tmp_path / "m.onnx", batch))
    assert images(model, Labelled(PIXELS, expected(), MEAN, STD), run=Run(7)).top1.value == 1
    with pytest.raises(SourceError, match=r"m: does not take images \(3, 5, 4\)"):
        images(model, Labelled(np.zeros((2, 3, 5, 4), np.float32), np.zeros(2, np.int64)))


def test_folder(tmp_path):
    """A Hugging Face folder brings its own preparation."""
    import transformers

    config = transformers.ResNetConfig(
        num_labels=3, embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_channels=3
    )
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    labelled = Labelled(np.repeat(PIXELS, 4, 2).repeat(4, 3), np.zeros(10, np.int64))
    found = images(open_classifier(tmp_path / "m"), labelled)
    with torch.no_grad():
        pixels = torch.from_numpy(Labelled(labelled.pixels, labelled.labels, MEAN, STD).prepared(range(10)))
        assert found.chosen == tuple(model(pixels).logits.argmax(1).tolist())


@pytest.mark.parametrize(
    ("labelled", "says"),
    [
        (Labelled(PIXELS, expected()), "bytes and nothing says how they are prepared"),
        (Labelled(PIXELS, expected(), (0.5,), (0.5,)), "mean has 1 numbers and the images 3 channels"),
    ],
)
def test_preparation(labelled, says):
    """Nothing is guessed."""
    with pytest.raises(SpecError, match=says):
        images(of_module(Brightest()), labelled)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": PIXELS}, r"holds x uint8 \(10, 3, 4, 4\); expected images"),
        ({"x": PIXELS, "y": np.zeros(9, np.int64)}, "expected images"),
        ({"x": PIXELS, "y": np.zeros(10)}, "expected images"),
        ({"x": PIXELS, "z": PIXELS, "y": np.zeros(10, np.int64)}, "expected images"),
        ({"x": PIXELS[:0], "y": np.zeros(0, np.int64)}, "expected images"),
    ],
)
def test_other_arrays(tmp_path, arrays, says):
    """What the file holds, and what it should."""
    with pytest.raises(SourceError, match=says):
        read_images(saved(tmp_path, **arrays))


def test_other_files(tmp_path):
    """No .npz file; no ONNX file; no image classifier."""
    (tmp_path / "f.npz").write_bytes(b"PK no")
    with pytest.raises(SourceError, match=r"is no \.npz file"):
        read_images(tmp_path / "f.npz")
    (tmp_path / "f.onnx").write_bytes(b"no")
    with pytest.raises(SourceError, match="ONNX Runtime cannot load it"):
        open_classifier(tmp_path / "f.onnx")
    with pytest.raises(SourceError, match="no such file"):
        open_classifier(tmp_path / "no.onnx")
    with pytest.raises(SourceError, match="no such folder"):
        open_classifier(tmp_path / "no")


def test_limit(tmp_path):
    """The first ones, or a sample by seed."""
    file = saved(tmp_path, x=PIXELS, y=np.arange(10))
    assert read_images(file, 3).labels.tolist() == [0, 1, 2]
    sample = read_images(file, 3, seed=3)
    assert sample.labels.tolist() == read_images(file, 3, seed=3).labels.tolist() != [0, 1, 2]
    assert (sample.pixels == PIXELS[sample.labels]).all()
    with pytest.raises(SpecError, match="limit is 0"):
        read_images(file, 0)
