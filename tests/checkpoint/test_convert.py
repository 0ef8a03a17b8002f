"""Quantizing a folder: the planes of the in-memory path bit for bit, the same bytes for any windows and threads."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.any_spec import specs
from builders.expected_planes import expected_planes, stored, tiny_windows
from builders.folders import (
    CONFIG,
    as_array,
    normal,
    read_folder,
    tiny_sharded,
    tree,
    write_folder,
)
from splitquant.api import quantize
from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec
from splitquant.core.split import quantize_array
from splitquant.errors import SpecError
from splitquant.format.decode import as_window
from splitquant.storage.memory import MemoryBudget

PLAIN = QuantSpec(bits=4, clusters=1)


BEYOND = [
    QuantSpec(bits=4, clusters=2, strategy="magnitude", granularity="channel"),
    QuantSpec(bits=3, clusters=2, strategy="residual", granularity="group:16"),
    QuantSpec(bits=3, clusters=3, strategy="lloyd", granularity="channel"),
]


SPECS = [
    QuantSpec(),
    PAPER,
    EMBEDDING,
    PLAIN,
    QuantSpec(bits=3, clusters=2, granularity="tensor"),
    QuantSpec(bits=2, clusters=8, granularity="group:16"),
    QuantSpec(bits=4, clusters=3, granularity="group:7", symmetric=True),
    QuantSpec(bits=5, clusters=5, granularity="channel", layout="parallel"),
    QuantSpec(bits=6, clusters=4, strategy="kmeans", granularity="group:1000"),
    QuantSpec(bits=8, clusters=1, granularity="tensor", symmetric=True),
    *BEYOND,
    QuantSpec(bits=2, clusters=4, strategy="residual", granularity="tensor", symmetric=True),
    QuantSpec(bits=2, clusters=3, strategy="residual", granularity="channel", symmetric=True, polish=False),
    QuantSpec(bits=4, clusters=1, strategy="lloyd", granularity="tensor"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
def test_planes_are_those_of_the_array_in_memory(tmp_path, dtype, spec):
    """LAW: the planes on disk are those of `quantize_array` of the same array, for every dtype and spec."""
    weight = stored(dtype, 3, 33, 250)
    source = write_folder(tmp_path / "m", {"a.weight": weight}, config=CONFIG)
    report = quantize(source, tmp_path / "q", spec)
    planes = expected_planes("a.weight", weight, spec)
    if sum(len(plane.data) for plane in planes.values()) >= len(weight.data):  # fp8 does not get smaller by every spec
        assert dtype.startswith("F8")
        assert read_folder(tmp_path / "q") == {"a.weight": weight}
        return
    assert read_folder(tmp_path / "q") == planes
    array = as_window(np.frombuffer(weight.data, np.uint8), dtype, 33, 250)
    assert report.outcomes[0].figures == quantize_array(array, spec).figures


@dataclass(frozen=True)
class Placed:
    """A tensor whose name and model type decide its channel axis."""

    id: str
    name: str
    shape: tuple[int, ...]
    axis: int
    stack: bool = False
    model_type: str = "tiny"


PLACED = [
    Placed("linear", "h.0.fc.weight", (24, 40), 0),
    Placed("GPT-2 Conv1D", "h.0.attn.c_attn.weight", (32, 96), 1, model_type="gpt2"),
    Placed("Conv1D name in another model", "h.0.attn.c_attn.weight", (32, 96), 0, model_type="bert"),
    Placed("conv1d", "c.weight", (16, 4, 9), 0),
    Placed("conv2d", "c.weight", (16, 3, 5, 5), 0),
    Placed("conv3d", "c.weight", (8, 3, 2, 4, 4), 0),
    Placed("experts [e, out, in]", "l.0.mlp.experts.gate_up_proj", (5, 24, 40), 1, stack=True),
    Placed("experts [e, in, out]", "l.0.mlp.experts.down_proj", (5, 24, 40), 2, stack=True, model_type="llama4"),
]


@pytest.mark.parametrize(
    "spec", [QuantSpec(), PAPER, QuantSpec(bits=4, clusters=2, granularity="group:16"), *BEYOND], ids=str
)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("case", PLACED, ids=lambda case: case.id)
def test_axes_and_stacks(tmp_path, case, dtype, spec):
    """The channel axis and stacks of experts are those of the rules; each expert equals its own 2-D result."""
    weight = stored(dtype, 4, *case.shape)
    source = write_folder(tmp_path / "m", {case.name: weight}, config={"model_type": case.model_type})
    quantize(source, tmp_path / "q", spec)
    assert read_folder(tmp_path / "q") == expected_planes(case.name, weight, spec, axis=case.axis, stack=case.stack)
    item = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]["tensors"][case.name]
    assert (item["axis"], item.get("stack", False)) == (case.axis, case.stack)


def test_each_expert_equals_the_2d_result(tmp_path):
    """Experts of a stack have the codes that they would have as files of their own."""
    stack = normal(9, 3, 24, 40)
    together = write_folder(tmp_path / "m1", {"mlp.experts.up_proj": stack})
    apart = write_folder(tmp_path / "m2", {f"mlp.experts.{i}.up_proj.weight": part for i, part in enumerate(stack)})
    quantize(together, tmp_path / "q1")
    quantize(apart, tmp_path / "q2")
    one, many = read_folder(tmp_path / "q1"), read_folder(tmp_path / "q2")
    for plane in ("codes", "clusters", "scale", "offset", "row_scale"):
        whole = as_array(one[f"mlp.experts.up_proj.{plane}"])
        for i, part in enumerate(whole):
            np.testing.assert_array_equal(part, as_array(many[f"mlp.experts.{i}.up_proj.weight.{plane}"]))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("nbytes", [1, 1000, 20_000, 10**9])
def test_windows_do_not_change_the_bytes(tmp_path, monkeypatch, nbytes, threads, granularity):
    """LAW: however tensors are cut into windows, every file of the output is the same."""
    source = tiny_sharded(tmp_path / "m")
    spec = QuantSpec(granularity=granularity)
    quantize(source, tmp_path / "whole", spec, threads=1)
    with monkeypatch.context() as patch:
        tiny_windows(patch, nbytes)
        quantize(source, tmp_path / "cut", spec, threads=threads)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3"])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_cut_tensors_equal_the_array_in_memory(tmp_path, monkeypatch, rows, dtype):
    """A tensor that goes through in windows of few rows gets the planes of the whole array, for every dtype."""
    weight, stack = stored(dtype, 5, 50, 90), stored(dtype, 6, 3, 20, 90)
    source = write_folder(tmp_path / "m", {"a.weight": weight, "mlp.experts.up_proj": stack})
    tiny_windows(monkeypatch, rows * 90 * 6)
    quantize(source, tmp_path / "q", QuantSpec(), threads=2)
    assert read_folder(tmp_path / "q") == {
        **expected_planes("a.weight", weight, QuantSpec()),
        **expected_planes("mlp.experts.up_proj", stack, QuantSpec(), axis=1, stack=True),
    }


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(16, 70)),
    spec=specs(granularities=["tensor", "channel", "group:2", "group:16", "group:33"]),
    nbytes=st.integers(1, 8000),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
    seed=st.integers(0, 9),
)
def test_any_cut_of_any_spec(tmp_path_factory, shape, spec, nbytes, dtype, seed):
    """The streaming path equals the in-memory path for any shape, spec and window; or the tensor is kept as too small."""
    tmp_path = tmp_path_factory.mktemp("any")
    weight = stored(dtype, seed, *shape)
    source = write_folder(tmp_path / "m", {"a.weight": weight})
    with pytest.MonkeyPatch.context() as patch:
        tiny_windows(patch, nbytes)
        report = quantize(source, tmp_path / "q", spec, threads=2)
    planes = expected_planes("a.weight", weight, spec)
    size = sum(len(plane.data) for plane in planes.values())
    if size < len(weight.data):
        assert read_folder(tmp_path / "q") == planes
        assert report.stored_bytes == size
    else:
        assert read_folder(tmp_path / "q") == {"a.weight": weight}
        assert f"would not get smaller ({size} bytes instead of {len(weight.data)})" in report.outcomes[0].reason


@pytest.mark.parametrize("spec", BEYOND, ids=str)
def test_no_strategy_sees_windows_or_threads(tmp_path, monkeypatch, spec):
    """LAW: for the other strategies too every file is the same, however tensors are cut and however many threads work."""
    source = tiny_sharded(tmp_path / "m")
    quantize(source, tmp_path / "whole", spec, threads=1)
    for number, (nbytes, threads) in enumerate(((1, 3), (5000, 2))):
        with monkeypatch.context() as patch:
            tiny_windows(patch, nbytes)
            quantize(source, tmp_path / f"cut{number}", spec, threads=threads)
        assert tree(tmp_path / f"cut{number}") == tree(tmp_path / "whole")


def test_threads_do_not_change_the_bytes(tmp_path):
    """LAW: 1, 2 and 5 threads write the same bytes of every file."""
    source = tiny_sharded(tmp_path / "m", files={"tokenizer.json": "{}", "README.md": "# A model\n"})
    for threads in (1, 2, 5):
        quantize(source, tmp_path / f"q{threads}", threads=threads)
    assert tree(tmp_path / "q1") == tree(tmp_path / "q2") == tree(tmp_path / "q5")


def test_a_tensor_with_other_channel_axis_needs_room(tmp_path, monkeypatch):
    """A tensor that cannot be cut, because its channels are not its rows, is refused by name where it does not fit."""
    source = write_folder(tmp_path / "m", {"h.0.c_fc.weight": normal(1, 40, 160)}, config={"model_type": "gpt2"})
    monkeypatch.setattr(MemoryBudget, "thread_bytes", property(lambda _: 1000))
    with pytest.raises(SpecError, match=r"'h\.0\.c_fc\.weight'.*--max-memory"):
        quantize(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_tied_embeddings_stored_twice_stay_equal(tmp_path):
    """Embeddings and a head with the same weights get the same planes."""
    table = normal(1, 60, 64)
    source = write_folder(tmp_path / "m", {"model.embed_tokens.weight": table, "lm_head.weight": table})
    quantize(source, tmp_path / "q")
    out = read_folder(tmp_path / "q")
    for plane in ("codes", "scale", "offset", "row_scale", "shape"):
        assert out[f"model.embed_tokens.weight.{plane}"] == out[f"lm_head.weight.{plane}"]
    assert out["lm_head.weight.codes"] == expected_planes("lm_head.weight", table, EMBEDDING)["lm_head.weight.codes"]


VALUES = {
    "zeros": np.zeros((32, 128), np.float32),
    "minus zeros": np.full((32, 128), -0.0, np.float32),
    "constant": np.full((32, 128), -0.3, np.float32),
    "two values": np.where(np.arange(32 * 128).reshape(32, 128) % 3, np.float32(0.5), np.float32(-2)),
    "zero rows": normal(1, 32, 128, dtype="fp32") * (np.arange(32) % 2)[:, None].astype(np.float32),
    "subnormal": normal(1, 32, 128, dtype="fp32") * np.float32(2.0**-130),
    "huge": normal(1, 32, 128, dtype="fp32") * np.float32(1e38),
}


@pytest.mark.parametrize("spec", [QuantSpec(clusters=8), PAPER, PLAIN, EMBEDDING], ids=str)
@pytest.mark.parametrize("values", VALUES)
def test_degenerate_values(tmp_path, values, spec):
    """Constants, few distinct values (fewer than clusters), subnormal and huge numbers go the same way."""
    source = write_folder(tmp_path / "m", {"a.weight": VALUES[values]})
    report = quantize(source, tmp_path / "q", spec)
    assert read_folder(tmp_path / "q") == expected_planes("a.weight", VALUES[values], spec)
    if values in ("zeros", "minus zeros"):
        assert report.figures.noise == 0
