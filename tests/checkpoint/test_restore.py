"""Dequantizing a folder gives plain floats in the dtypes of the source."""

from __future__ import annotations

import json

import numpy as np
import pytest

from builders.folders import (
    CONFIG,
    Raw,
    is_canonical,
    normal,
    raw,
    read_folder,
    tiny_folder,
    tiny_sharded,
    tiny_tensors,
    tree,
    write_folder,
)
from splitquant.api import dequantize, dry_run, quantize
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.core.split import quantize_array
from splitquant.errors import DestinationError, SourceError, SpecError
from splitquant.format.dtypes import DTYPES
from splitquant.storage import memory

KINDS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


def expected(source, tensors, spec):
    """What every tensor of a source becomes when it is quantized and dequantized in memory."""
    found = {name: raw(tensor) for name, tensor in tensors.items()}
    for decision in dry_run(source, spec).quantized:
        layer, chosen = decision.layer, decision.spec
        array, kind = np.asarray(tensors[layer.name]), DTYPES[layer.dtype].kind
        if layer.stack:
            values = np.stack([quantize_array(part, chosen, layer.axis - 1).dequantize(kind) for part in array])
        else:
            values = quantize_array(array, chosen, layer.axis).dequantize(kind)
        found[layer.name] = Raw(KINDS[kind], array.shape, np.ascontiguousarray(values).tobytes())
    return found


SPECS = [
    QuantSpec(),
    PAPER,
    QuantSpec(granularity="group:16", bits=3, clusters=5),
    QuantSpec(4, 2, "magnitude"),
    QuantSpec(2, 3, "residual", "group:16"),
    QuantSpec(2, 3, "lloyd"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_floats_are_those_of_dequantize(tmp_path, dtype, spec):
    """LAW: the folder's tensors are `SplitTensor.dequantize` in the dtype of the source; kept ones are equal."""
    tensors = tiny_tensors(dtype=dtype)
    source = write_folder(tmp_path / "m", tensors, config=CONFIG)
    quantize(source, tmp_path / "q", spec)
    total = dequantize(tmp_path / "q", tmp_path / "f")
    found = read_folder(tmp_path / "f")
    assert found == expected(source, tensors, spec)
    assert total == sum(len(tensor.data) for tensor in found.values())


@pytest.mark.parametrize("model_type", ["gpt2", "llama4", "tiny"])
def test_other_axes(tmp_path, model_type):
    """Conv1D weights, convolutions and experts get their own shapes back."""
    tensors = {
        "h.0.c_fc.weight": normal(1, 40, 160),
        "conv.weight": normal(2, 16, 3, 5, 5),
        "mlp.experts.down_proj": normal(3, 3, 40, 60),
    }
    source = write_folder(tmp_path / "m", tensors, config={"model_type": model_type})
    quantize(source, tmp_path / "q")
    dequantize(tmp_path / "q", tmp_path / "f")
    assert read_folder(tmp_path / "f") == expected(source, tensors, QuantSpec())


@pytest.mark.parametrize("nbytes", [1, 1000, 30_000])
def test_windows_do_not_change_the_bytes(tmp_path, monkeypatch, nbytes):
    """However tensors are cut into windows, every file is the same."""
    quantize(tiny_sharded(tmp_path / "m"), tmp_path / "q")
    dequantize(tmp_path / "q", tmp_path / "whole")
    monkeypatch.setattr(memory, "WINDOW_BYTES", nbytes)
    monkeypatch.setattr(memory, "WHOLE_BYTES", nbytes)
    dequantize(tmp_path / "q", tmp_path / "cut")
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_config_and_files(tmp_path):
    """config.json is the source's again, other files are carried over, the report of the codes is not."""
    source = tiny_folder(tmp_path / "m", files={"tokenizer.json": "{}", "sub/x": "y", "README.md": "# m\r\n"})
    quantize(source, tmp_path / "q")
    dequantize(tmp_path / "q", tmp_path / "f")
    config = json.loads((tmp_path / "f/config.json").read_text())
    assert config == CONFIG
    assert list(config) == list(CONFIG)
    found = tree(tmp_path / "f")
    assert "splitquant_report.json" not in found
    assert (found["tokenizer.json"], found["sub/x"]) == (b"{}", b"y")


def test_sharded(tmp_path):
    """Shards keep their names, division and metadata; the index is that of the float folder."""
    source = tiny_sharded(tmp_path / "m")
    quantize(source, tmp_path / "q")
    dequantize(tmp_path / "q", tmp_path / "f")
    index = json.loads((tmp_path / "f/model.safetensors.index.json").read_text())
    before = json.loads((source / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"] == before["metadata"]
    for path in (tmp_path / "f").glob("*.safetensors"):
        assert is_canonical(path)


def test_quantizing_again_is_possible(tmp_path):
    """The float folder is a source again."""
    quantize(tiny_sharded(tmp_path / "m"), tmp_path / "q")
    dequantize(tmp_path / "q", tmp_path / "f")
    quantize(tmp_path / "f", tmp_path / "q2")


def test_float_folder_is_refused(tmp_path):
    """A folder that splitquant did not write is refused."""
    with pytest.raises(SourceError, match=r"config\.json: is no splitquant folder \(quant_method is None\)"):
        dequantize(tiny_folder(tmp_path / "m"), tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_destinations(tmp_path):
    """Destinations are treated as by quantize."""
    quantize(tiny_folder(tmp_path / "m"), tmp_path / "q")
    before = tree(tmp_path / "q")
    for place in (tmp_path / "q", tmp_path / "q/f", tmp_path, tmp_path / "m"):
        with pytest.raises(DestinationError):
            dequantize(tmp_path / "q", place)
    assert tree(tmp_path / "q") == before
    dequantize(tmp_path / "q", tmp_path / "m", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "q"]


def test_memory_bound_is_checked(tmp_path):
    """A bound that cannot be kept is refused."""
    quantize(tiny_folder(tmp_path / "m"), tmp_path / "q")
    with pytest.raises(SpecError, match="max-memory is 1 MiB"):
        dequantize(tmp_path / "q", tmp_path / "f", max_memory="1MiB")


def test_report_is_not_needed(tmp_path):
    """A folder without its report can be dequantized."""
    quantize(tiny_folder(tmp_path / "m"), tmp_path / "q")
    (tmp_path / "q/splitquant_report.json").unlink()
    dequantize(tmp_path / "q", tmp_path / "f")


def test_card_does_not_say_quantized(tmp_path):
    """The float folder gets the source's card back, not the one that tells how to load codes."""
    quantize(tiny_folder(tmp_path / "m", files={"README.md": "# m\n"}), tmp_path / "q")
    dequantize(tmp_path / "q", tmp_path / "f")
    found = tree(tmp_path / "f")
    assert b"splitquant.load(" not in found["README.md"]
