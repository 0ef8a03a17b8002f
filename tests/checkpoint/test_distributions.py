"""Distributions of two folders: what NumPy says of the whole tensors, whatever the windows and the threads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from builders.folders import bf16, normal, tiny_folder, tiny_tensors, write_folder
from splitquant.api import distribution, quantize
from splitquant.checkpoint import distributions as module
from splitquant.checkpoint.distributions import distributions
from splitquant.checkpoint.folder import open_folder
from splitquant.checkpoint.quantized import open_quantized
from splitquant.core.bars import Bars
from splitquant.core.floats import to_float32
from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec
from splitquant.core.split import quantize_array
from splitquant.errors import SpecError, TensorError, VerifyError
from splitquant.storage.memory import MIB, MemoryBudget


def of(source, destination, threads=1, memory=1024 * MIB):
    """The distributions of two folders by name."""
    found = distributions(open_folder(source), open_quantized(destination), MemoryBudget(memory, threads))
    return dict(found)


def same(one, two):
    """Whether two bars are the same."""
    return (one.first, one.exponent, one.counts.tolist()) == (two.first, two.exponent, two.counts.tolist())


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("spec", [QuantSpec(4), QuantSpec(4, 1, granularity="group:16"), PAPER, EMBEDDING], ids=str)
def test_values_errors_and_grids(tmp_path, dtype, spec):
    """What is counted are the values of the source, the errors of what is stored, and values over their scales."""
    w = normal(1, 40, 48, dtype=dtype)
    source = write_folder(tmp_path / "m", {"up_proj.weight": w, "norm.weight": normal(2, 48, dtype=dtype)}, config={})
    quantize(source, tmp_path / "q", spec)
    found = of(source, tmp_path / "q")
    w = to_float32(w.astype(np.float32) if dtype == "fp64" else w)
    stored = quantize_array(normal(1, 40, 48, dtype=dtype), spec)
    w_hat = stored.dequantize()
    assert same(found["up_proj.weight"].values, Bars.of(w))
    assert same(found["up_proj.weight"].errors, Bars.of(w_hat - w))
    grid = found["up_proj.weight"].grid
    assert grid.axis == ("code" if spec.own_zero_points else "value" if spec == PAPER else "scaled")
    if spec == PAPER:
        assert same(grid.bars, Bars.of(w))
    assert len(grid.levels) == spec.clusters
    assert [len(row) for row in grid.levels] == [2**spec.bits] * spec.clusters
    assert len(grid.segments) == (spec.clusters if spec.clusters > 1 else 0)
    assert same(
        found["norm.weight"].values,
        Bars.of(to_float32(np.asarray(normal(2, 48, dtype=dtype), w.dtype if dtype == "fp64" else None))),
    )
    assert found["norm.weight"].grid is None


def test_segments_are_the_clusters(tmp_path):
    """Every value lies in the segment of its cluster, and segments do not overlap."""
    w = np.random.default_rng(3).standard_t(3, (64, 96)).astype(np.float32)
    source = write_folder(tmp_path / "m", {"up_proj.weight": w}, config={})
    quantize(source, tmp_path / "q", PAPER)
    segments = of(source, tmp_path / "q")["up_proj.weight"].grid.segments
    ids = quantize_array(w, PAPER).unpacked_clusters()
    assert sorted(one.cluster for one in segments) == [0, 1, 2]
    for one in segments:
        of_it = w[ids == one.cluster]
        assert (one.low, one.high) == (of_it.min(), of_it.max())
    assert all(a.high < b.low for a, b in pairwise(segments))


def test_clusters_that_overlap_have_no_segments(tmp_path):
    """A value takes the nearest level of any cluster where grids are cut by magnitude."""
    source = write_folder(tmp_path / "m", {"up_proj.weight": normal(1, 64, 64)}, config={})
    quantize(source, tmp_path / "q", QuantSpec(4, strategy="magnitude"))
    grid = of(source, tmp_path / "q")["up_proj.weight"].grid
    assert grid.segments == ()
    assert len(grid.levels) == 4


def test_own_grids_lie_on_codes(tmp_path):
    """Where every row has its own grid, values that are levels lie on whole numbers: the codes that are stored."""
    codes = np.random.default_rng(0).integers(0, 16, (32, 64))
    codes[:, :2] = [0, 15]
    w = ((codes - 5) * 2.0 ** -np.arange(32)[:, None]).astype(np.float32)
    spec = QuantSpec(4, 1)
    source = write_folder(tmp_path / "m", {"up_proj.weight": w}, config={})
    quantize(source, tmp_path / "q", spec)
    grid = of(source, tmp_path / "q")["up_proj.weight"].grid
    assert grid.levels == (tuple(float(code) for code in range(16)),)
    assert abs(grid.bars.width * (grid.bars.first + 0.5)) < 0.1
    assert same(grid.bars.at_most(64), Bars.of(grid_of(w, spec)).at_most(64))


def grid_of(w, spec):
    """Where weights lie among the codes of their rows."""
    stored = quantize_array(w, spec)
    return (w * (1 / stored.row_scale) * np.float32(8) + stored.zero).astype(np.float32)


def test_windows_and_threads_change_nothing(tmp_path, monkeypatch):
    source = tiny_folder(tmp_path / "m")
    quantize(source, tmp_path / "q")
    whole = of(source, tmp_path / "q")
    monkeypatch.setattr(module, "_AT_ONCE", 100)
    again = of(source, tmp_path / "q", threads=3)
    assert list(whole) == list(again)
    for name, one in whole.items():
        other = again[name]
        assert same(one.values, other.values)
        assert same(one.errors, other.errors)
        assert (one.grid is None) == (other.grid is None)
        if one.grid is not None:
            assert same(one.grid.bars, other.grid.bars)
            assert (one.grid.levels, one.grid.segments) == (other.grid.levels, other.grid.segments)


def test_stacks_and_columns(tmp_path):
    """Of stacked experts all values count, and the grid is that of the first; transposed weights have columns for rows."""
    tensors = {
        "model.layers.0.mlp.experts.gate_up_proj": normal(1, 3, 20, 48),
        "h.0.attn.c_attn.weight": normal(2, 48, 96),
    }
    source = write_folder(tmp_path / "m", tensors, config={"model_type": "gpt2"})
    quantize(source, tmp_path / "q")
    found = of(source, tmp_path / "q")
    stack = found["model.layers.0.mlp.experts.gate_up_proj"]
    assert (stack.matrices, stack.values.total, stack.errors.total, stack.grid.bars.total) == (3, 2880, 2880, 960)
    across = found["h.0.attn.c_attn.weight"]
    assert same(across.values, Bars.of(to_float32(tensors["h.0.attn.c_attn.weight"])))
    stored = quantize_array(np.ascontiguousarray(tensors["h.0.attn.c_attn.weight"]), QuantSpec(), axis=1)
    assert same(across.errors, Bars.of(stored.dequantize() - to_float32(tensors["h.0.attn.c_attn.weight"])))


def test_kept_tensors_may_hold_anything(tmp_path):
    """NaN and infinity are counted apart; an empty tensor and integers have no distribution."""
    norm = bf16(np.array([1, np.nan, np.inf, 2], np.float32))
    tensors = {
        "up_proj.weight": normal(1, 32, 32),
        "norm.weight": norm,
        "none": np.zeros((0, 4), np.float32),
        "ids": np.arange(5),
    }
    source = write_folder(tmp_path / "m", tensors, config={})
    quantize(source, tmp_path / "q")
    found = of(source, tmp_path / "q")
    assert set(found) == {"up_proj.weight", "norm.weight"}
    assert (found["norm.weight"].values.total, found["norm.weight"].not_finite) == (2, 2)


def test_folders_of_two_models_are_refused(tmp_path):
    source = tiny_folder(tmp_path / "m")
    quantize(source, tmp_path / "q")
    tensors = tiny_tensors()
    tensors["lm_head.weight"] = normal(1, 41, 48)
    with pytest.raises(VerifyError, match=r"tensor 'lm_head.weight' has shape \(40, 48\); that of .*n has \(41, 48\)"):
        of(write_folder(tmp_path / "n", tensors, config={}), tmp_path / "q")
    del tensors["lm_head.weight"]
    with pytest.raises(VerifyError, match=r"o: tensor 'lm_head.weight' of the other folder is missing"):
        of(write_folder(tmp_path / "o", tensors, config={}), tmp_path / "q")
    tensors["lm_head.weight"] = normal(1, 40, 48)
    tensors["more.weight"] = normal(1, 4)
    with pytest.raises(VerifyError, match=r"q: tensor 'more.weight' of the other folder is missing"):
        of(write_folder(tmp_path / "p", tensors, config={}), tmp_path / "q")


def test_one_tensor(tmp_path):
    """With the source its values and errors, without it what is stored; of a float folder its values."""
    source = tiny_folder(tmp_path / "m")
    quantize(source, tmp_path / "q")
    name = "lm_head.weight"
    pair, whole = distribution(tmp_path / "q", name, source), of(source, tmp_path / "q")[name]
    assert same(pair.values, whole.values)
    assert same(pair.errors, whole.errors)
    alone = distribution(tmp_path / "q", name)
    assert alone.errors.total == 0
    assert same(alone.values, Bars.of(open_quantized(tmp_path / "q").rows(name, 0, 0, 40).dequantize()))
    assert same(distribution(source, name).values, whole.values)
    assert same(
        distribution(tmp_path / "q", "model.layers.0.input_layernorm.weight").values,
        of(source, tmp_path / "q")["model.layers.0.input_layernorm.weight"].values,
    )
    with pytest.raises(SpecError, match=r"holds no tensor 'lm_head.wait'; did you mean 'lm_head.weight'"):
        distribution(source, "lm_head.wait")
    with pytest.raises(SpecError, match="is a float folder itself"):
        distribution(source, name, source)
    with pytest.raises(TensorError, match=r"tensor 'model.position_ids' is I64; only floats can be drawn"):
        distribution(tmp_path / "q", "model.position_ids")
