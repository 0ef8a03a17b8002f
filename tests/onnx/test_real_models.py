"""Published models, where their files are at hand: split exactly, quantized with the branches counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import splitquant.onnx as sqo
from builders.onnx_models import TWO_PARTS

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the models are not at {DATA}")

VOICE = {
    "input": np.random.default_rng(0).standard_normal((1, 576)).astype(np.float32) * 0.1,
    "state": np.zeros((2, 1, 128), np.float32),
    "sr": np.array(16000, np.int64),
}
MODELS = {
    "silero-vad/silero_vad_16k_op15.onnx": (VOICE, 6, 4),
    "silero-vad/silero_vad_op18_ifless.onnx": (VOICE, 16, 0),
    "ultraface/version-RFB-320.onnx": (None, 52, 0),
}


@pytest.mark.parametrize("name", MODELS)
def test_split_and_quantized(name, tmp_path):
    """All convolutions and Gemms are converted (in the branches of an If too), recurrent weights quantized, the split model is the same function."""
    feeds, layers, gates = MODELS[name]
    done = sqo.split(DATA / name, tmp_path / "split.onnx")
    assert len(done.report.changed) == layers
    assert sqo.verify(DATA / name, tmp_path / "split.onnx", feeds).worst_sqnr_db > 80
    for form in ("qdq", "matmulnbits"):
        done = sqo.quantize(DATA / name, tmp_path / f"{form}.onnx", format=form, spec=TWO_PARTS)
        assert len(done.report.changed) == layers + gates
        found = sqo.verify(DATA / name, tmp_path / f"{form}.onnx", feeds)
        assert found.branches == 2 * (layers + gates)
        assert found.worst_sqnr_db > 20
