"""What is never quantized: values that are no numbers, codes that look like weights, names that clash."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest

from builders.expected_planes import fp8
from builders.folders import (
    CONFIG,
    bf16,
    normal,
    raw,
    read_folder,
    tiny_folder,
    write_folder,
    write_sharded,
)
from splitquant.api import quantize
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.core.split import quantize_array
from splitquant.errors import SourceError, SpecError, TensorError


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_nonfinite_weights_are_refused(tmp_path, dtype, value, granularity):
    """NaN and infinity name the file and the tensor, say what to do, and leave nothing behind."""
    good, bad = normal(1, 64, 64, dtype=dtype), normal(2, 64, 64, dtype=dtype)
    bad[5, 7] = bf16([value])[0] if dtype == "bf16" else value
    source = write_sharded(tmp_path / "m", [{"a.weight": good}, {"b.weight": bad}])
    with pytest.raises(TensorError, match=r"model-00002-of-00002.*'b\.weight' holds NaN or infinity.*--exclude"):
        quantize(source, tmp_path / "q", QuantSpec(granularity=granularity))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    quantize(source, tmp_path / "q", exclude=["b.weight"])  # the remedy works
    assert raw(bad) == read_folder(tmp_path / "q")["b.weight"]


@pytest.mark.parametrize(
    ("dtype", "code"), [("F8_E4M3", 0x7F), ("F8_E4M3", 0xFF), ("F8_E5M2", 0x7C), ("F8_E5M2", 0x7D)]
)
def test_nonfinite_fp8_is_refused(tmp_path, dtype, code):
    """NaN and infinity of fp8 are found."""
    codes = fp8(1, 32, 300)
    codes[3, 3] = code
    source = write_folder(tmp_path / "m", {"a.weight": raw(codes, dtype)})
    with pytest.raises(TensorError, match=r"'a\.weight' holds NaN or infinity"):
        quantize(source, tmp_path / "q", PAPER)


def test_the_remedy_works_for_names_that_look_like_globs(tmp_path):
    """`layers[0].weight` is excluded by the very words of the error, and nothing else is."""
    good, bad = normal(1, 64, 64), normal(2, 64, 64)
    bad[5, 7] = 0x7FC0
    source = write_folder(tmp_path / "m", {"layers[0].weight": bad, "layers[1].weight": good})
    with pytest.raises(TensorError, match=r"--exclude 'layers\[0\]\.weight'$") as error:
        quantize(source, tmp_path / "q")
    (advice,) = re.findall("--exclude '(.*)'$", str(error.value))
    report = quantize(source, tmp_path / "q", exclude=advice)
    assert [outcome.outcome for outcome in report.outcomes] == ["kept", "quantized"]
    assert report["layers[0].weight"].reason == "excluded by 'layers[0].weight'"
    with pytest.raises(SpecError, match=r"the pattern 'layers\[0\]\.\*' matches none of the 2 tensors"):
        quantize(source, tmp_path / "q2", exclude="layers[0].*")  # a class of characters: layers0.weight


def test_doubles_beyond_float32_are_refused(tmp_path):
    """A double that float32 cannot hold is infinity there, and refused."""
    weight = normal(1, 64, 64, dtype="fp64")
    weight[0, 0] = 1e300
    with pytest.raises(TensorError, match=r"'a\.weight'"):
        quantize(write_folder(tmp_path / "m", {"a.weight": weight}), tmp_path / "q")


def test_values_that_float16_can_just_hold(tmp_path):
    """A float16 weight from which a level beyond float16 could come is refused; the largest allowed ones come back finite."""
    with pytest.raises(TensorError, match="holds 6e\\+04; fp16 magnitudes above"):
        quantize(write_folder(tmp_path / "m", {"a.weight": np.full((64, 64), 6e4, np.float16)}), tmp_path / "q")
    values = np.linspace(-32768, 32768, 4096, dtype=np.float16).reshape(64, 64)
    for spec in (PAPER, QuantSpec(bits=2, clusters=1), QuantSpec(symmetric=True)):
        assert np.isfinite(quantize_array(values, spec).dequantize("fp16")).all()


@dataclass(frozen=True)
class Quantized:
    """A source that is quantized already."""

    id: str
    config: dict
    name: str
    says: str


QUANTIZED = [
    Quantized("gptq", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "a.qweight", "'gptq'"),
    Quantized("fp8", {"quantization_config": {"quant_method": "fp8"}}, "a.weight_scale_inv", "'fp8'"),
    Quantized("compressed", {"compression_config": {"format": "x"}}, "a.weight", "already quantized"),
    Quantized("fp8 that does not say so", {}, "a.weight_scale_inv", "'a.weight_scale_inv'"),
    Quantized("nested", {"text_config": {"quantization_config": {"quant_method": "awq"}}}, "a.weight", "'awq'"),
    Quantized("bitsandbytes that does not say so", {}, "a.SCB", "'a.SCB'"),
    Quantized("gptq that does not say so", {}, "a.qweight", "'a.qweight'"),
    Quantized("mxfp4 that does not say so", {}, "mlp.experts.down_proj_blocks", "_blocks'"),
]


@pytest.mark.parametrize("case", QUANTIZED, ids=lambda case: case.id)
def test_quantized_sources_are_refused(tmp_path, case):
    """Codes are never taken for weights."""
    tensors = {"b.weight": normal(1, 64, 64), case.name: np.ones((4, 4), np.float32)}
    source = write_folder(tmp_path / "m", tensors, config=case.config)
    with pytest.raises(SourceError, match="the float model it was made from") as error:
        quantize(source, tmp_path / "q")
    assert case.says in str(error.value)
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    "scale", ["a.scale_weight", "a.weight_scale", "a.scale", "a.weight.scale", "a.input_scale", "scaled_fp8"]
)
def test_fp8_with_a_scale_is_refused(tmp_path, scale):
    """fp8 weights beside which a scale lies are codes, whatever the scale is called; without one they are plain values."""
    weight = raw(np.random.default_rng(1).integers(0, 0x70, (32, 64), np.uint8), "F8_E4M3")
    tensors = {"a.weight": weight, scale: np.float32([0.5])}
    with pytest.raises(SourceError, match="already quantized weight"):
        quantize(write_folder(tmp_path / "m", tensors, config=CONFIG), tmp_path / "q")
    quantize(write_folder(tmp_path / "plain", {"a.weight": weight}, config=CONFIG), tmp_path / "q")
    assert "a.weight.codes" in read_folder(tmp_path / "q")


def test_own_output_is_refused_with_the_remedy(tmp_path):
    """A splitquant folder is refused, and the verb that makes a float one of it is named."""
    quantize(tiny_folder(tmp_path / "m"), tmp_path / "q")
    with pytest.raises(SourceError, match="splitquant dequantize"):
        quantize(tmp_path / "q", tmp_path / "q2")


def test_a_folder_without_tensors(tmp_path):
    """A file without tensors is no model, and is refused."""
    with pytest.raises(SourceError, match="holds no tensors"):
        quantize(write_folder(tmp_path / "m", {}), tmp_path / "q")


@pytest.mark.parametrize("plane", ["codes", "clusters", "scale", "offset", "row_scale", "shape"])
def test_two_tensors_of_one_name_are_refused(tmp_path, plane):
    """A tensor of the source that is called like a plane would be written over, so both are named."""
    source = write_folder(
        tmp_path / "m", {"a.weight": normal(1, 64, 64), f"a.weight.{plane}": np.float32([1])}, config=CONFIG
    )
    with pytest.raises(TensorError, match=rf"'a\.weight' and 'a\.weight\.{plane}' would both be stored"):
        quantize(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()
    quantize(source, tmp_path / "q", exclude=["a.weight"])
    assert read_folder(tmp_path / "q") == read_folder(source)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "the source has no config.json, so transformers cannot load"),
        ({"hidden_size": 64}, "the source has a config.json that names no model_type, so"),
        (CONFIG, ""),
        ({"auto_map": {"AutoModel": "modeling.Model"}}, ""),
    ],
)
def test_a_made_up_configuration_is_told(tmp_path, config, says):
    """A folder whose config.json holds nothing of the model is no success without a word; one that names its model is."""
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 64)}, config=config)
    report = quantize(source, tmp_path / "q")
    assert [says in note for note in report.notes] == ([True] if says else [])
    assert json.loads((tmp_path / "q/splitquant_report.json").read_text()).get("notes", []) == list(report.notes)
