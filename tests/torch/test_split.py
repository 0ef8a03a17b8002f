"""split: k parallel layers of the original type, the same function."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import UNIT, bound
from torch import nn

import splitquant.torch as sqt
from splitquant import PAPER, QuantSpec, quantize_array
from splitquant.core.minmax import minmax_rounded
from splitquant.errors import SpecError, TensorError

CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@st.composite
def convolutions(draw):
    """Any convolution of small size, and an input for it."""
    kind = draw(st.sampled_from(CONVOLUTIONS))
    dims = int(kind.__name__[-2])
    groups = draw(st.sampled_from([1, 2, 3]))
    depthwise = draw(st.booleans())
    ins = groups if depthwise else groups * draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    stride = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    options = {
        "stride": stride,
        "groups": groups,
        "bias": draw(st.booleans()),
        "dilation": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
    }
    if "Transpose" in kind.__name__:
        options["output_padding"] = tuple(draw(st.integers(0, max(s, options["dilation"]) - 1)) for s in stride)
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
        if draw(st.booleans()) and stride == (1,) * dims:
            options["padding"] = "same"
    layer = kind(ins, groups * draw(st.integers(1, 2)), kernel, **options)
    return layer, torch.randn(2, ins, *[draw(st.integers(6, 7)) for _ in range(dims)])


@settings(max_examples=120, deadline=None)
@given(convolutions(), st.integers(1, 8), st.sampled_from(list(UNIT)))
def test_any_convolution(made, k, dtype):
    """Every convolution becomes k of its type, gives the same output up to the stated bound, and merges bit for bit."""
    layer, x = made[0].to(dtype), made[1].to(dtype)
    split, report = sqt.split(layer, QuantSpec(clusters=k, granularity="tensor"))
    assert [type(part) for part in split.parts] == [type(layer)] * k
    assert report[""].outcome == "split"
    with torch.no_grad():
        assert ((split(x).double() - layer(x).double()).abs() <= bound(layer, x, k)).all()
    assert torch.equal(bits(sqt.merge(split).model.weight), bits(layer.weight))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.booleans(),
    st.integers(1, 8),
    st.sampled_from(list(UNIT)),
    st.sampled_from(["tensor", "channel", "group:4"]),
    st.sampled_from(["kmeans", "min_error", "magnitude"]),
)
def test_any_linear(ins, outs, bias, k, dtype, granularity, strategy):
    """Every Linear becomes k of them, gives the same output up to the stated bound, and merges bit for bit."""
    layer, x = nn.Linear(ins, outs, bias).to(dtype), torch.randn(3, 2, ins).to(dtype)
    split, _ = sqt.split(layer, QuantSpec(clusters=k, granularity=granularity, strategy=strategy))
    with torch.no_grad():
        assert ((split(x).double() - layer(x).double()).abs() <= bound(layer, x, k)).all()
    assert torch.equal(bits(sqt.merge(split).model.weight), bits(layer.weight))


def bits(tensor):
    """The bits of a tensor's numbers: -0.0 is not 0.0."""
    return tensor.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_parts_are_masks_of_the_original_values(dtype):
    """Each weight is in exactly one part, with its own bits; -0.0 and subnormal numbers come back too."""
    layer = nn.Linear(7, 5).to(dtype)
    layer.weight.data[0, :4] = torch.tensor([0.0, -0.0, 1e-40, -1e-40], dtype=torch.float64).to(dtype)
    split, _ = sqt.split(layer)
    weights = torch.stack([part.weight.detach() for part in split.parts])
    assert ((weights != 0).sum(0) == (layer.weight != 0)).all()
    assert torch.equal(weights.sum(0), layer.weight)
    assert torch.equal(bits(sqt.merge(split).model.weight), bits(layer.weight))


@pytest.mark.parametrize(
    "spec",
    [PAPER, sqt.SPLIT, QuantSpec(clusters=5, granularity="channel"), QuantSpec(clusters=2, strategy="magnitude")],
    ids=str,
)
def test_clusters_are_those_of_core(spec):
    """A part holds the weights to which core gives its cluster."""
    layer = nn.Linear(9, 20)
    split, report = sqt.split(layer, spec)
    assert report[""].spec == replace(spec, layout="parallel", polish=False)
    cluster = torch.from_numpy(quantize_array(layer.weight.detach().numpy(), report[""].spec).unpacked_clusters())
    for c, part in enumerate(split.parts):
        assert torch.equal(part.weight, torch.where(cluster == c, layer.weight, 0.0))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(2, 8),
    st.sampled_from(list(UNIT)),
    st.sampled_from(["tensor", "channel", "group:4"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_residual_parts(ins, outs, k, width, dtype, granularity, symmetric, seed):
    """All parts but the last are on min-max grids, the last is the rest; the output and merge are the layer's again."""
    spec = QuantSpec(min(width, 8 // k), k, "residual", granularity, symmetric)
    generator = torch.Generator().manual_seed(seed)
    layer, x = nn.Linear(ins, outs).to(dtype), torch.randn(3, ins, generator=generator).to(dtype)
    layer.weight.data = (torch.randn(outs, ins, generator=generator) ** 3).to(dtype)
    split, report = sqt.split(layer, spec)
    rest = layer.weight.detach()
    for part in split.parts[:-1]:
        found = torch.from_numpy(minmax_rounded(rest.float().numpy(), spec)).to(dtype)
        assert torch.equal(part.weight, found)
        rest = rest - found
    assert torch.equal(split.parts[-1].weight, rest)
    noise = (rest.double() - torch.from_numpy(minmax_rounded(rest.float().numpy(), spec)).double()).square().sum()
    assert report[""].figures.noise == pytest.approx(float(noise))
    absolute = copy.deepcopy(layer)
    absolute.weight.data = sum(part.weight.detach().abs() for part in split.parts)
    with torch.no_grad():
        assert ((split(x).double() - layer(x).double()).abs() <= bound(absolute, x, k)).all()
    merged = sqt.merge(split).model.weight
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(merged, layer.weight)
    assert ((merged - layer.weight).abs() <= torch.finfo(dtype).eps * layer.weight.abs()).all()


def test_residual_parts_of_other_layers():
    """A transposed convolution's channels are its second axis, channels_last stays, and lloyd is refused."""
    layer = nn.ConvTranspose2d(4, 3, 2).to(memory_format=torch.channels_last)
    split, report = sqt.split(layer, QuantSpec(strategy="residual"))
    by_channel = layer.weight.detach().movedim(1, 0).reshape(3, -1).numpy()
    first = minmax_rounded(by_channel, report[""].spec)
    assert np.array_equal(split.parts[0].weight.detach().movedim(1, 0).reshape(3, -1).numpy(), first)
    assert split.parts[0].weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(1, 4, 5, 5)
    assert torch.allclose(split(x), layer(x), atol=1e-5)
    assert torch.equal(sqt.merge(split).model.weight, layer.weight)
    with pytest.raises(SpecError, match=r"lloyd channel; expected another strategy"):
        sqt.split(layer, QuantSpec(strategy="lloyd"))


def test_bias_is_in_part_0_alone():
    """The bias is added once: part 0 has it, and it is the very parameter when the model is changed in place."""
    model = nn.Sequential(nn.Linear(4, 3))
    bias = model[0].bias
    sqt.split(model, inplace=True)
    assert model[0].parts[0].bias is bias
    assert [part.bias for part in model[0].parts[1:]] == [None, None]
    assert model[0].bias is bias


def test_transformers_conv1d():
    """transformers' Conv1D, whose weight is [in, out] and whose bias must be there, is split too."""
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer, x = pytorch_utils.Conv1D(10, 24), torch.randn(2, 3, 24)
    nn.init.normal_(layer.bias)
    split, _ = sqt.split(layer)
    assert [type(part) for part in split.parts] == [pytorch_utils.Conv1D] * 3
    assert torch.allclose(split(x), layer(x), atol=1e-5)
    assert not any(
        split.parts[c].bias.any() for c in (1, 2)
    )  # it cannot do without one; saved, so that loading mends it
    assert split.nf == 10
    merged = sqt.merge(split).model
    assert torch.equal(merged(x), layer(x))
    quantized, _ = sqt.quantize(layer, PAPER)
    assert torch.allclose(quantized(x), sqt.merge(quantized).model(x), atol=1e-5)


def test_output_size_of_a_transposed_convolution():
    """Arguments besides the input reach every part."""
    layer, x = nn.ConvTranspose2d(3, 4, 3, stride=2), torch.randn(1, 3, 5, 5)
    split, _ = sqt.split(layer)
    assert split(x, output_size=(12, 12)).shape == (1, 4, 12, 12)
    assert torch.allclose(split(x, output_size=[12, 12]), layer(x, output_size=[12, 12]), atol=1e-6)


def test_copy_or_in_place():
    """A copy leaves the model alone; in place changes it and gives it back."""
    model = nn.Sequential(nn.Linear(4, 3))
    copied, _ = sqt.split(model)
    assert isinstance(model[0], nn.Linear)
    changed, _ = sqt.split(model, inplace=True)
    assert changed is model
    assert isinstance(model[0], sqt.SplitLayer)
    assert torch.equal(copied[0].parts[1].weight, model[0].parts[1].weight)
    assert sqt.merge(model, inplace=True).model is model
    assert isinstance(model[0], nn.Linear)


@pytest.mark.parametrize("convert", [sqt.split, lambda model, **how: sqt.quantize(model, PAPER, **how)])
def test_a_model_that_is_one_layer(convert):
    """A single layer is replaced by what is returned; in place it cannot be, and the error says so."""
    layer = nn.Linear(16, 3)
    split = convert(layer).model
    assert isinstance(split, sqt.SplitLayer)
    with pytest.raises(
        SpecError, match=r"itself a Linear and cannot be replaced in place; use the model that is returned"
    ):
        convert(layer, inplace=True)
    with pytest.raises(SpecError, match=r"itself a SplitLayer and cannot be replaced in place"):
        sqt.merge(split, inplace=True)


def test_include_and_exclude():
    """exclude keeps modules by pattern and says so; include wins over it; a pattern that matches nothing is an error."""
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    _, report = sqt.split(model, exclude=["*"], include=["b"])
    assert (report["a"].outcome, report["a"].reason) == ("kept", "excluded by '*'")
    assert (report["b"].outcome, report["b"].reason) == ("split", "included by 'b'")
    with pytest.raises(
        SpecError, match=r"the pattern 'c\.\*' matches none of the 2 modules with weights; print the report"
    ):
        sqt.split(model, exclude=["c.*"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity(value):
    """Such weights are an error with the module's name, and the model is as it was."""
    model = nn.ModuleDict({"good": nn.Linear(16, 3), "bad": nn.Linear(16, 3)})
    model["bad"].weight.data[0, 0] = value
    residual = QuantSpec(strategy="residual")
    for convert in (sqt.split, sqt.quantize, lambda model, **how: sqt.split(model, residual, **how)):
        with pytest.raises(TensorError, match=r"module 'bad' \(Linear\) holds NaN or infinity.*name it in exclude"):
            convert(model, inplace=True)
    assert type(model["good"]) is nn.Linear
    assert sqt.split(model, exclude=["bad"]).report["good"].outcome == "split"


def test_a_model_that_cannot_be_copied():
    """Where deepcopy fails, the error says how to go on."""
    model = nn.Sequential(nn.Linear(3, 3))
    model.cache = model(torch.ones(3))  # deepcopy refuses tensors with a history
    with pytest.raises(SpecError, match=r"the model cannot be copied .*; convert it with inplace=True"):
        sqt.split(model)
    assert sqt.split(model, inplace=True).report["0"].outcome == "split"


def test_training():
    """A split model trains: each part gets the gradient of the whole weight, and a frozen weight stays frozen."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).train()
    model[2].weight.requires_grad_(False)
    x = torch.randn(2, 2, 4, 4)
    model(x).square().sum().backward()
    split, _ = sqt.split(model)
    split.zero_grad()
    split(x).square().sum().backward()
    assert split[0].training
    for part in split[0].parts:
        assert torch.allclose(part.weight.grad, model[0].weight.grad, rtol=1e-4, atol=1e-4)
    assert torch.allclose(split[0].bias.grad, model[0].bias.grad, rtol=1e-4, atol=1e-4)
    assert not any(part.weight.requires_grad for part in split[2].parts)
    loss = split(x).square().sum()
    torch.optim.SGD(split.parameters(), 1e-3).step()
    assert split(x).square().sum() < loss
    merged, report = sqt.merge(split)
    assert "are in more than one part: they were added" in report["0"].reason
    assert torch.allclose(merged(x), split(x), atol=1e-5)
    assert merged[0].weight.requires_grad
    assert not merged[2].weight.requires_grad


def test_a_weight_that_is_read_from_outside():
    """Code that reads a split layer's weight, bias or sizes gets those of the layer, with gradients to the parts."""
    layer = nn.Linear(4, 3)
    split, _ = sqt.split(layer)
    assert torch.equal(split.weight, layer.weight)
    assert torch.equal(split.bias, layer.bias)
    assert (split.in_features, split.out_features) == (4, 3)
    split.weight.sum().backward()
    assert all(part.weight.grad is not None for part in split.parts)


def test_k_parts_whatever_the_values():
    """Constant, zero and few-valued weights give k parts too, so that a state_dict depends on the spec alone."""
    for values in (torch.zeros(3, 4), torch.ones(3, 4), torch.tensor([[0.0, -0.0, 1.0, 1.0]] * 3)):
        layer = nn.Linear(4, 3)
        layer.weight.data = values
        split, _ = sqt.split(layer, QuantSpec(clusters=4))
        assert len(split.parts) == 4
        assert torch.equal(bits(sqt.merge(split).model.weight), bits(values))


def test_bytes_of_a_merge():
    """merge reports what the parts took and what the weight takes."""
    layer = nn.Linear(16, 8)
    for convert, taken in ((sqt.split, 3 * 512), (lambda model: sqt.quantize(model, PAPER), 3 * (64 + 8 + 16))):
        _, report = sqt.merge(convert(nn.Sequential(layer)).model)
        assert (report["0"].source_bytes, report["0"].stored_bytes) == (taken, 512)


# Guards against: the report of a split says that a layer takes what it took, and merge, rightly, that it takes k times as much.
@pytest.mark.parametrize("k", [1, 3])
def test_k_float_parts_take_k_times_the_bytes(k):
    """What a split layer takes is what its parts take."""
    split, report = sqt.split(nn.Sequential(nn.Linear(16, 8)), QuantSpec(clusters=k))
    assert report["0"].source_bytes == 512
    assert report["0"].stored_bytes == sum(4 * part.weight.numel() for part in split[0].parts) == 512 * k
