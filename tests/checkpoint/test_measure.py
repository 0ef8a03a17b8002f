"""Measuring candidates: the figures of the real run, whatever the threads; a fixed sample of what is large."""

from __future__ import annotations

import numpy as np
import pytest

from folders import Raw, bf16, normal, tiny_folder, tiny_tensors, write_folder
from splitquant.api import quantize
from splitquant.checkpoint import measure
from splitquant.checkpoint.convert import plan_folder
from splitquant.checkpoint.measure import measure_folder, sample_of
from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec
from splitquant.errors import SpecError, TensorError
from splitquant.format.planes import Geometry
from splitquant.plan.plan import Recipe
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


def options_of(source, pool=POOL, threads=1, memory=1024 * MIB, recipe=None):
    """What `measure_folder` finds for all tensors that a recipe quantizes."""
    folder, plan = plan_folder(source, recipe or Recipe(QuantSpec(2, 1, granularity="tensor")))
    return measure_folder(folder, plan.quantized, lambda _: pool, MemoryBudget(memory, threads))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_the_figures_of_the_real_run(tmp_path, dtype):
    source = tiny_folder(tmp_path / "m", dtype=dtype)
    found = {option.tensor.name: option for option in options_of(source)}
    assert all(option.exact for option in found.values())
    for number, spec in enumerate(POOL[:-1]):
        report = quantize(source, tmp_path / "q", spec, embeddings=spec, force=True)
        for tensor in report.quantized:
            option = found[tensor.name]
            assert (option.signal, option.noise[number]) == (tensor.figures.signal, tensor.figures.noise)
            assert option.nbytes(spec) == tensor.stored_bytes
    for option in found.values():
        assert (option.noise[-1], option.nbytes(None)) == (0.0, option.tensor.nbytes)


@pytest.mark.parametrize("largest", [1 << 20, 500])
def test_same_result_whatever_the_threads_and_the_memory(tmp_path, monkeypatch, largest):
    monkeypatch.setattr(measure, "SAMPLE_WEIGHTS", largest)
    source = tiny_folder(tmp_path / "m")
    found = options_of(source)
    assert found == options_of(source, threads=3, memory=300 * MIB)
    assert {option.exact for option in found} == ({True} if largest > 10_000 else {False})


def test_a_sample_is_close_and_scaled(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 512, 128), "b.experts.w.weight": normal(2, 9, 64, 96)})
    whole = options_of(source)
    monkeypatch.setattr(measure, "SAMPLE_WEIGHTS", 1 << 13)
    for one, other in zip(whole, options_of(source), strict=True):
        assert one.exact
        assert not other.exact
        assert np.allclose(one.signal, other.signal, rtol=0.1)
        assert np.allclose(one.noise, other.noise, rtol=0.3)


def test_a_sample_is_whole_rows_evenly_spread(monkeypatch):
    monkeypatch.setattr(measure, "SAMPLE_WEIGHTS", 100)
    (one,) = sample_of(Geometry(1, 50, 10, (50, 10), 0))
    assert (one.matrix, one.rows.tolist()) == (0, [2, 7, 12, 17, 22, 27, 32, 37, 42, 47])
    many = sample_of(Geometry(16, 50, 10, (50, 10), 0))
    assert [sample.matrix for sample in many] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert {tuple(sample.rows.tolist()) for sample in many} == {(25,)}
    (wide,) = sample_of(Geometry(1, 2, 1000, (2, 1000), 0))
    assert wide.rows.tolist() == [1]


@pytest.mark.parametrize("largest", [1 << 20, 2000])
def test_output_channels_that_are_not_the_first_axis(tmp_path, monkeypatch, largest):
    """A Conv1D weight is measured as its transpose would be."""
    monkeypatch.setattr(measure, "SAMPLE_WEIGHTS", largest)
    weight = normal(3, 96, 64)
    turned = write_folder(tmp_path / "t", {"h.0.attn.c_attn.weight": weight}, config={"model_type": "gpt2"})
    usual = write_folder(tmp_path / "u", {"h.0.attn.c_attn.weight": np.ascontiguousarray(weight.T)})
    pool = (QuantSpec(4), QuantSpec(4, 1))
    (one,), (other,) = options_of(turned, pool), options_of(usual, pool)
    assert one.tensor.role.axis == 1
    assert (one.noise, one.signal) == (other.noise, other.signal)


def test_fp8(tmp_path):
    source = write_folder(tmp_path / "m", {"a.weight": Raw("F8_E4M3", (64, 64), bytes(range(126)) * 32 + bytes(64))})
    (option,) = options_of(source, (QuantSpec(4, 1),))
    assert 0 < option.noise[0] < option.signal


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
        options_of(source)


def test_a_matrix_that_memory_cannot_hold(tmp_path):
    source = write_folder(
        tmp_path / "m", {"h.0.attn.c_attn.weight": normal(3, 2500, 1200)}, config={"model_type": "gpt2"}
    )
    with pytest.raises(SpecError, match="has to be held whole"):
        options_of(source, memory=193 * MIB)
