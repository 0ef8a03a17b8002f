"""INT8 activations: the input of every quantized layer on a grid of its own range, and the product of the integers."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import splitquant.torch as sqt
from splitquant import EMBEDDING, PAPER, QuantSpec
from splitquant.errors import SpecError

SPECS = [
    PAPER,
    QuantSpec(),
    QuantSpec(bits=8, clusters=1, granularity="tensor"),
    QuantSpec(bits=4, clusters=2, symmetric=True),
]
LAYERS = [
    (nn.Linear(11, 6), (2, 5, 11)),
    (nn.Linear(11, 6, bias=False), (11,)),
    (nn.Conv1d(8, 6, 3, padding=1, padding_mode="circular", groups=2), (2, 8, 9)),
    (nn.Conv2d(3, 6, 3, dilation=2, padding=1), (3, 3, 9, 9)),
    (nn.Conv2d(3, 6, 3), (3, 9, 9)),
    (nn.Conv3d(4, 3, 2, bias=False), (1, 4, 4, 4, 4)),
    (nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), (2, 6, 4, 4)),
]
each_grid = pytest.mark.parametrize("name", sqt.ACTIVATIONS)


def linear_of(x, layer, weight, bias):
    """The layer's function in float64 with another weight and bias."""
    double = copy.deepcopy(layer).double()
    double.weight = nn.Parameter(weight.double())
    double.bias = None if bias is None else nn.Parameter(bias.double())
    with torch.no_grad():
        return double(x.double())


@each_grid
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("made", LAYERS, ids=lambda made: type(made[0]).__name__)
def test_is_integer_arithmetic(made, spec, name):
    """The output is the product of the input's codes and the decoded weight, times the scale, to float32 rounding."""
    layer, shape = made
    x = torch.distributions.StudentT(4.0).sample(shape)
    quantized, report = sqt.quantize(layer, spec, activations=name)
    weight = sqt.merge(quantized).model.weight.detach()
    codes, scale, zero_point = sqt.DynamicInt8.parse(name).codes(x, weight.ndim)
    assert torch.equal(codes, codes.round())
    assert (int(codes.min()) >= -127, int(codes.max()) <= 127) if "sym" in name else int(codes.min()) >= 0
    product = linear_of(codes - zero_point, layer, weight, None)
    expected = linear_of(torch.zeros_like(x), layer, weight, layer.bias) + product * scale.double()
    size = linear_of((codes - zero_point).abs(), layer, weight.abs(), None) * scale.double() + expected.abs()
    with torch.no_grad():
        found = quantized(x)
    assert found.dtype == x.dtype
    assert bool(((found.double() - expected).abs() <= (weight.numel() + 9) * 2.0**-24 * size).all())
    assert report[""].activations == name
    assert name in str(report)
    assert name in repr(quantized)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=20),
    st.sampled_from(sqt.ACTIVATIONS),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_grid_laws(values, name, dtype):
    """Zero stays zero, every value is within a step, and codes are in range."""
    x, grid = torch.tensor(values, dtype=dtype), sqt.DynamicInt8.parse(name)
    codes, scale, _ = grid.codes(x)
    found = grid(x)
    assert found.dtype == torch.float32
    assert bool((found[x == 0] == 0).all())
    assert bool(((found - x.float()).abs() <= scale * 1.001).all())
    low, high = (-127, 127) if "sym" in name else (0, 255)
    assert bool((codes >= low).all() and (codes <= high).all() and (scale > 0).all())
    assert str(grid) == name


def test_per_tensor_is_dynamic_quantize_linear():
    """`int8-tensor` has the codes, scale and zero point of ONNX's DynamicQuantizeLinear in ONNX Runtime, bit for bit."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    kinds = {"q": onnx.TensorProto.UINT8, "s": onnx.TensorProto.FLOAT, "z": onnx.TensorProto.UINT8}
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    grid = sqt.DynamicInt8(per_token=False)
    for shift in (0.0, 5.0, -5.0):
        x = torch.randn(1000) * 3 + shift
        q, s, z = session.run(None, {"x": x.numpy()})
        codes, scale, zero_point = grid.codes(x)
        assert np.array_equal(codes.numpy(), q)
        assert (float(scale), float(zero_point)) == (float(s), float(z))


@pytest.mark.parametrize("symmetric", [False, True])
def test_per_token_is_that_of_torchao(symmetric):
    """`int8-token` has the codes, scales and zero points of torchao's dynamic INT8 quantization, bit for bit."""
    primitives = pytest.importorskip("torchao.quantization.quant_primitives", reason="torchao is not installed")
    x = torch.randn(7, 64) * 2 + 0.3
    mapping = primitives.MappingType.SYMMETRIC if symmetric else primitives.MappingType.ASYMMETRIC
    low = -127 if symmetric else -128
    scale, zero_point = primitives.choose_qparams_affine(
        x, mapping, (1, 64), torch.int8, low, 127, eps=torch.finfo(torch.float32).eps
    )
    theirs = primitives.quantize_affine(x, (1, 64), scale, zero_point, torch.int8, low, 127)
    codes, our_scale, our_zero_point = sqt.DynamicInt8(symmetric=symmetric).codes(x)
    shift = 0 if symmetric else 128  # our codes are unsigned there
    assert torch.equal(theirs.float() + shift, codes)
    assert torch.equal(scale, our_scale.flatten())
    assert torch.equal(zero_point.float() + shift, our_zero_point.flatten())


def test_tokens():
    """A large token does not coarsen the grid of another: per token that holds, per tensor not."""
    layer, spec = nn.Linear(16, 4), QuantSpec(bits=8, clusters=1)
    x = torch.randn(2, 16)
    x[1] *= 1000
    expected = sqt.quantize(layer, spec).model(x)
    errors = {}
    for name in sqt.ACTIVATIONS:
        errors[name] = float((sqt.quantize(layer, spec, activations=name).model(x) - expected)[0].abs().max())
    assert errors["int8-token"] < 0.05 < errors["int8-tensor"]
    assert errors["int8-token-sym"] < 0.05 < errors["int8-tensor-sym"]


def test_input_is_quantized_once(monkeypatch):
    """Parallel parts share one quantized input."""
    calls, codes = [], sqt.DynamicInt8.codes
    monkeypatch.setattr(sqt.DynamicInt8, "codes", lambda *args: calls.append(1) or codes(*args))
    quantized, _ = sqt.quantize(nn.Linear(16, 3), PAPER, activations="int8-token")
    x = torch.randn(2, 16)
    assert torch.equal(quantized(input=x), quantized(x))
    assert len(calls) == 2
    assert all(part.weight.activations is None for part in quantized.parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [PAPER, QuantSpec()], ids=str)
def test_16_bit_layers_have_the_grid_in_float32(spec, dtype):
    """In 16 bits the grid would be rounded again; the product is that of float32, rounded once at the end."""
    layer, x = nn.Linear(64, 8).to(dtype), torch.randn(5, 64).to(dtype)
    quantized, _ = sqt.quantize(layer, spec, activations="int8-token")
    weight = sqt.merge(quantized).model.weight.detach()
    expected = functional.linear(sqt.DynamicInt8()(x), weight.float(), layer.bias.detach().float())
    with torch.no_grad():
        found = quantized(x)
    assert found.dtype == dtype
    eps = torch.finfo(dtype).eps  # the kernel of the parts' products does not round weights to their own dtype
    assert torch.allclose(found.float(), expected, rtol=2.0 * eps, atol=max(1e-4, eps / 2.0))


@pytest.mark.parametrize("spec", [PAPER, QuantSpec()], ids=str)
def test_gradients(spec):
    """Gradients pass straight through the grid, to the input and the bias."""
    layer = nn.Linear(16, 3)
    quantized, _ = sqt.quantize(layer, spec, activations="int8-token")
    x = torch.randn(2, 16, requires_grad=True)
    out = quantized(x)
    assert torch.equal(out, quantized(x.detach()))
    out.sum().backward()
    assert torch.allclose(x.grad, sqt.merge(quantized).model.weight.sum(0).expand(2, 16))
    assert all(parameter.grad is not None for parameter in quantized.parameters())


def test_zeros_empty_batches_nan_and_infinity():
    """Zeros give the bias, an empty batch an empty output, and NaN or infinity is not hidden."""
    for name in sqt.ACTIVATIONS:
        layer, _ = sqt.quantize(nn.Linear(16, 3), activations=name)
        assert layer.weight.activations == sqt.DynamicInt8.parse(name)
        assert torch.equal(layer(torch.zeros(2, 16)), layer.bias.expand(2, 3))
        assert layer(torch.zeros(0, 16)).shape == (0, 3)
        for value in (torch.nan, torch.inf):
            assert bool(layer(torch.tensor([[1.0, value, *[0.0] * 14]])).isnan().all())


class Own(nn.Linear):
    """A Linear with a forward of its own."""

    def forward(self, x):
        return functional.linear(2 * x, self.weight, self.bias)


def test_what_stays_float_is_named():
    """Layers that are not called, or compute something of their own, keep float inputs, and the report says why."""
    model = nn.ModuleDict({"own": Own(8, 8), "attention": nn.MultiheadAttention(8, 2), "embed": nn.Embedding(5, 8)})
    model["head"] = nn.Linear(8, 5, bias=False)
    model["head"].weight = model["embed"].weight
    quantized, report = sqt.quantize(model, QuantSpec(), embeddings=EMBEDDING, activations="int8-token")
    assert report["own"].reason == "its input stays float: it has a forward of its own"
    assert report["own"].activations == report["embed"].activations == ""
    reason = "its input stays float: nn.MultiheadAttention reads its weight and does not call it"
    assert report["attention.out_proj"].reason == reason
    assert quantized["own"].weight.activations is None
    assert quantized["head"].weight is quantized["embed"].weight
    assert report["head"].activations == "int8-token"
    assert quantized["head"].weight.activations == sqt.DynamicInt8()
    asked, report = sqt.quantize(model, QuantSpec(), include=["own"], activations="int8-token")
    assert report["own"].activations == "int8-token"
    assert torch.isfinite(asked["own"](torch.randn(2, 8))).all()


def test_layers_that_share_a_weight():
    """Layers that share a weight are on the same grid, or all of them stay float."""
    model = nn.ModuleDict({"plain": nn.Linear(8, 8, bias=False), "own": Own(8, 8, bias=False)})
    model["own"].weight = model["plain"].weight
    quantized, report = sqt.quantize(model, QuantSpec(), activations="int8-token")
    assert report["plain"].activations == ""
    assert quantized["plain"].weight.activations is None


@pytest.mark.parametrize("spec", [QuantSpec(), PAPER], ids=str)
def test_the_fused_kernel_of_an_encoder_layer(spec):
    """nn.TransformerEncoderLayer reads weights where it can: packed ones it cannot, summed parts it may, and keep float inputs."""
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 5, 8)
    quantized, report = sqt.quantize(layer, spec, activations="int8-tensor")
    plain, _ = sqt.quantize(layer, spec)
    with torch.no_grad():
        same = torch.allclose(quantized(x), plain(x), atol=1e-6)
    assert same == (spec == PAPER)
    if spec == PAPER:
        reason = "its input stays float: nn.TransformerEncoderLayer may read its weight and not call it"
        assert report["linear1"].reason == report["linear2"].reason == reason
        assert report["linear1"].activations == ""
    else:
        assert report["linear1"].activations == "int8-tensor"


def test_integer_inputs_are_an_error():
    """Integers as an input are refused as a plain layer refuses them."""
    layer, _ = sqt.quantize(nn.Linear(8, 3), activations="int8-token")
    with pytest.raises(RuntimeError, match="dtype"):
        layer(torch.ones(2, 8, dtype=torch.long))


def test_transformers_conv1d():
    """transformers' Conv1D calls addmm, and its input is on the grid too."""
    utils = pytest.importorskip("transformers.pytorch_utils")
    layer, x = utils.Conv1D(5, 8), torch.randn(2, 3, 8)
    merged = sqt.merge(sqt.quantize(layer).model).model
    for spec, activations in ((QuantSpec(), "int8-token"), (PAPER, "int8-tensor")):
        quantized, _ = sqt.quantize(layer, spec, activations=activations)
        merged = sqt.merge(quantized).model
        assert torch.allclose(quantized(x), merged(sqt.DynamicInt8.parse(activations)(x)), atol=1e-6)
        assert torch.equal(quantized(x=x), quantized(x))


@pytest.mark.parametrize("name", ["int4", "INT8-token", 8, "int8", ""])
def test_unknown_names(name):
    """Another name is refused with the list of those there are."""
    with pytest.raises(SpecError, match=r"expected None or one of int8-token, int8-tensor, int8-token-sym"):
        sqt.quantize(nn.Linear(2, 2), activations=name)


def test_merge_and_again():
    """merge gives float layers with float inputs; a converted model keeps its grids through copies and its state_dict."""
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 8)
    for spec in (PAPER, QuantSpec()):
        quantized, report = sqt.quantize(model, spec, activations="int8-tensor")
        assert [row.activations for row in report] == ["int8-tensor"] * 2
        merged, report = sqt.merge(quantized)
        assert torch.allclose(merged(x), sqt.quantize(model, spec).model(x), atol=1e-6)
        assert report["0"].reason == "quantized: the float values of its codes; its input was int8-tensor and is float"
        buffer = io.BytesIO()
        torch.save(quantized, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(x), quantized(x))
        plain, _ = sqt.quantize(model, spec)
        assert plain.state_dict().keys() == quantized.state_dict().keys()
