"""Measuring candidates: the figures of the real run, whatever the threads; a fixed sample of what is large."""

from __future__ import annotations

import numpy as np
import pytest

from builders.folders import Raw, bf16, normal, tiny_folder, tiny_tensors, write_folder
from splitquant.api import quantize
from splitquant.checkpoint.costs import FolderCosts
from splitquant.checkpoint.measure import measure_folder
from splitquant.checkpoint.source import open_float_folder, plan_folder
from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec
from splitquant.errors import SpecError, TensorError
from splitquant.plan import sample
from splitquant.plan.recipe import Recipe
from splitquant.storage.memory import MIB, MemoryBudget

POOL = (
    QuantSpec(4, 1),
    QuantSpec(3, 1, granularity="group:32", polish=True),
    QuantSpec(2),
    QuantSpec(4, 2, "min_error", "tensor"),
    QuantSpec(3, 2, "magnitude"),
    QuantSpec(3, 2, "residual", "group:32"),
    QuantSpec(3, 1, "lloyd"),
    PAPER,
    EMBEDDING,
    None,
)


def measured(source, pool=POOL, threads=1, memory=1024 * MIB):
    """What `measure_folder` finds for all tensors that could be quantized."""
    folder = open_float_folder(source)
    plan = plan_folder(folder, Recipe(QuantSpec(2, 1, granularity="tensor")))
    return measure_folder(folder, [(one.layer, pool) for one in plan.quantized], MemoryBudget(memory, threads))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_the_figures_of_the_real_run(tmp_path, dtype):
    source = tiny_folder(tmp_path / "m", dtype=dtype)
    found = {one.layer.name: one for one in measured(source)}
    costs = FolderCosts(open_float_folder(source))
    assert all(one.exact for one in found.values())
    for number, spec in enumerate(POOL[:-1]):
        report = quantize(source, tmp_path / "q", spec, embeddings=spec, force=True)
        for tensor in report.changed:
            one = found[tensor.name]
            assert (one.signal, one.noise[number]) == (tensor.figures.signal, tensor.figures.noise)
            assert costs.price(one.layer, spec) == tensor.stored_bytes
    assert {one.noise[-1] for one in found.values()} == {0.0}


@pytest.mark.parametrize("largest", [1 << 20, 500])
def test_same_result_whatever_the_threads_and_the_memory(tmp_path, monkeypatch, largest):
    monkeypatch.setattr(sample, "SAMPLE_WEIGHTS", largest)
    source = tiny_folder(tmp_path / "m")
    found = measured(source)
    assert found == measured(source, threads=3, memory=300 * MIB)
    assert {one.exact for one in found} == ({True} if largest > 10_000 else {False})


def test_a_sample_is_close_and_scaled(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 512, 128), "b.experts.w.weight": normal(2, 9, 64, 96)})
    whole = measured(source)
    monkeypatch.setattr(sample, "SAMPLE_WEIGHTS", 1 << 13)
    for one, other in zip(whole, measured(source), strict=True):
        assert one.exact
        assert not other.exact
        assert np.allclose(one.signal, other.signal, rtol=0.1)
        assert np.allclose(one.noise, other.noise, rtol=0.3)


@pytest.mark.parametrize("largest", [1 << 20, 2000])
def test_output_channels_that_are_not_the_first_axis(tmp_path, monkeypatch, largest):
    """A Conv1D weight is measured as its transpose would be."""
    monkeypatch.setattr(sample, "SAMPLE_WEIGHTS", largest)
    weight = normal(3, 96, 64)
    turned = write_folder(tmp_path / "t", {"h.0.attn.c_attn.weight": weight}, config={"model_type": "gpt2"})
    usual = write_folder(tmp_path / "u", {"h.0.attn.c_attn.weight": np.ascontiguousarray(weight.T)})
    pool = (QuantSpec(4), QuantSpec(4, 1))
    (one,), (other,) = measured(turned, pool), measured(usual, pool)
    assert one.layer.axis == 1
    assert (one.noise, one.signal) == (other.noise, other.signal)


def test_fp8(tmp_path):
    source = write_folder(tmp_path / "m", {"a.weight": Raw("F8_E4M3", (64, 64), bytes(range(126)) * 32 + bytes(64))})
    (one,) = measured(source, (QuantSpec(4, 1),))
    assert 0 < one.noise[0] < one.signal


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan(tmp_path, value):
    tensors = tiny_tensors()
    values = np.zeros((48, 48), np.float32)
    values[7, 7] = value
    tensors["model.layers.1.self_attn.q_proj.weight"] = bf16(values)
    source = write_folder(tmp_path / "m", tensors)
    with pytest.raises(
        TensorError, match=r"model\.safetensors: tensor 'model\.layers\.1\.self_attn\.q_proj\.weight' holds NaN"
    ):
        measured(source)


def test_a_matrix_that_memory_cannot_hold(tmp_path):
    source = write_folder(
        tmp_path / "m", {"h.0.attn.c_attn.weight": normal(3, 2500, 1200)}, config={"model_type": "gpt2"}
    )
    with pytest.raises(SpecError, match="has to be held whole"):
        measured(source, memory=193 * MIB)
