"""quantize: low-bit weights in any module, fused or as k integer layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import splitquant.torch as sqt
from splitquant import EMBEDDING, PAPER, QuantSpec, quantize_array
from splitquant.errors import SpecError, TensorError

PARALLEL = [
    PAPER,
    QuantSpec(bits=2, clusters=4, granularity="channel", layout="parallel"),
    QuantSpec(bits=8, clusters=2, granularity="group:5", symmetric=True, layout="parallel"),
    QuantSpec(bits=3, clusters=1, granularity="tensor", layout="parallel"),
    QuantSpec(bits=3, strategy="magnitude", granularity="tensor", layout="parallel"),
    QuantSpec(bits=4, strategy="residual", granularity="tensor"),
    QuantSpec(bits=2, clusters=4, strategy="residual", symmetric=True),
]
FUSED = [
    QuantSpec(),
    QuantSpec(bits=2, clusters=3, granularity="tensor"),
    QuantSpec(bits=5, clusters=1),
    QuantSpec(bits=3, strategy="magnitude"),
    QuantSpec(bits=3, strategy="lloyd"),
    QuantSpec(bits=4, polish=False),
]
LAYERS = [
    (nn.Linear(11, 6), (2, 11), 0),
    (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular", groups=2), (1, 4, 9), 0),
    (nn.Conv2d(3, 6, 3, dilation=2), (1, 3, 9, 9), 0),
    (nn.Conv3d(2, 3, 2, bias=False), (1, 2, 4, 4, 4), 0),
    (nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), (1, 6, 4, 4), 1),
]


@pytest.mark.parametrize("spec", [*FUSED, *PARALLEL], ids=str)
@pytest.mark.parametrize("made", LAYERS, ids=lambda made: type(made[0]).__name__)
def test_weights_are_those_of_core(made, spec):
    """A quantized layer computes with the weights that core's codes stand for; merge gives a float layer of them."""
    layer, shape, axis = made
    expected = quantize_array(layer.weight.detach().numpy(), spec, axis)
    quantized, report = sqt.quantize(layer, spec)
    merged, _ = sqt.merge(quantized)
    found = merged.weight.detach().numpy()
    if spec.strategy == "residual":  # the sum of its parts is rounded
        assert np.allclose(found, expected.dequantize(), rtol=1e-6, atol=1e-7)
    else:
        assert np.array_equal(found, expected.dequantize())
    assert report[""].figures == expected.figures
    x = torch.randn(shape)
    assert torch.allclose(quantized(x), merged(x), atol=1e-5)


@pytest.mark.parametrize("spec", PARALLEL, ids=str)
def test_k_integer_layers(spec):
    """Each part holds core's codes packed, one scale and one zero_point, and decodes to core's part."""
    layer = nn.Conv2d(3, 6, 3)
    core = quantize_array(layer.weight.detach().numpy(), spec)
    quantized, _ = sqt.quantize(layer, spec)
    assert [type(part) for part in quantized.parts] == [nn.Conv2d] * spec.clusters
    for c, part in enumerate(quantized.parts):
        packed = part.weight
        assert packed.codes.shape == (6, -(-27 * spec.bits // 8))
        assert packed.scale.tolist() == [core.scale[c]]
        assert packed.zero_point().tolist() == [core.zero_point[c]]
        assert np.array_equal(packed.dequantize().numpy(), core.parts()[c])
    stored = [name for name in quantized.state_dict() if name.startswith("parts.1.")]
    row_scale = [] if spec.granularity.kind == "tensor" else ["row_scale"]
    wanted = [f"parts.1.weight.{name}" for name in ("codes", "scale", "offset", *row_scale, "shape")]
    assert stored == (wanted if spec.clusters > 1 else [])


def test_a_fused_weight_has_no_zero_point():
    """Grids of their own range need not hold zero, and the error says so."""
    quantized, _ = sqt.quantize(nn.Linear(4, 3))
    with pytest.raises(TensorError, match=r"has no zero_point: its grids need not hold zero"):
        quantized.weight.zero_point()


def test_default_is_the_best_fused_spec():
    """Without a spec it is QuantSpec(), and the layer keeps its class, name and hooks."""
    model = nn.Sequential(nn.Linear(24, 10))
    quantized, report = sqt.quantize(model)
    assert report["0"].spec == QuantSpec()
    assert type(quantized[0]) is nn.Linear
    assert isinstance(quantized[0].weight, sqt.PackedWeight)
    assert str(report).startswith("1 of 1 modules with weights changed\nquantized  0  Linear  10x24  float32")


def test_a_single_layer_in_place():
    """A fused weight goes into the layer itself."""
    layer = nn.Linear(24, 10)
    assert sqt.quantize(layer, inplace=True).model is layer
    assert isinstance(layer.weight, sqt.PackedWeight)
    assert isinstance(sqt.merge(layer, inplace=True).model.weight, nn.Parameter)


def test_gradients_reach_inputs_and_biases():
    """The codes are frozen; what is before and beside them still learns."""
    for spec in (QuantSpec(), PAPER):
        quantized, _ = sqt.quantize(nn.Linear(5, 3), spec)
        x = torch.randn(2, 5, requires_grad=True)
        quantized(x).sum().backward()
        assert x.grad is not None
        assert [name for name, p in quantized.named_parameters() if p.grad is not None] in (["bias"], ["parts.0.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("spec", [QuantSpec(), PAPER], ids=str)
def test_other_dtypes(spec, dtype):
    """A layer of any float dtype keeps it."""
    layer = nn.Linear(24, 10).to(dtype)
    quantized, _ = sqt.quantize(layer, spec)
    assert quantized(torch.randn(2, 24, dtype=dtype)).dtype == dtype
    assert sqt.merge(quantized).model.weight.dtype == dtype


def test_embeddings():
    """Embeddings are kept unless asked for, and a head tied to one goes with it and stays tied."""
    model = nn.ModuleDict({"embed": nn.Embedding(30, 24), "head": nn.Linear(24, 30, bias=False)})
    model["head"].weight = model["embed"].weight
    _, report = sqt.quantize(model)
    assert report["embed"].reason == "an embedding is a table of rows that are looked up, not a product"
    assert report["head"].reason == "its weight is that of 'embed', which is kept"
    quantized, report = sqt.quantize(model, embeddings=EMBEDDING)
    assert quantized["embed"].weight is quantized["head"].weight
    assert report["embed"].spec == report["head"].spec == EMBEDDING
    assert report["head"].reason == "its weight is that of 'embed', and is shared as before"
    merged, _ = sqt.merge(quantized)
    assert merged["embed"].weight is merged["head"].weight
    included, report = sqt.quantize(model, QuantSpec(bits=8), include=["embed"])
    assert isinstance(included["embed"].weight, sqt.PackedWeight)
    assert report["embed"].spec == QuantSpec(bits=8)


def test_parallel_embeddings():
    """A table of rows is not the sum of layers, and the error says so."""
    with pytest.raises(SpecError, match=r"embeddings is INT4 k=3 kmeans tensor parallel; expected the layout 'fused'"):
        sqt.quantize(nn.Sequential(nn.Embedding(3, 3)), embeddings=PAPER)


def test_quantized_twice_or_after_split():
    """What is converted already is kept and named; merge undoes it first."""
    model = nn.Sequential(nn.Linear(4, 3))
    split = sqt.split(model).model
    assert sqt.quantize(split).report["0"].reason == "is split already; merge it first"
    assert sqt.split(split).report["0"].reason == "is split already; merge it first"
    quantized = sqt.quantize(model).model
    assert sqt.quantize(quantized).report["0"].reason == "is quantized already; merge it first"
    assert sqt.merge(model).report["0"].reason == "is neither split nor quantized"
    assert sqt.merge(quantized).report["0"].reason == "quantized: the float values of its codes"


@pytest.mark.parametrize(
    "scaled",
    [
        lambda w: w * 0.5,
        lambda w: 2 * w,
        lambda w: w / 3,
        lambda w: -w,
        lambda w: 1 - w,
        lambda w: w**2,
        lambda w: abs(w) + w,
        lambda w: w.mul(2),
        torch.relu,
        lambda w: w * (w > 0),
    ],
)
def test_a_forward_that_computes_with_its_weight(scaled):
    """A layer whose own forward scales or combines its weight works with a packed one, on the decoded values."""

    class Scaled(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, scaled(self.weight), self.bias)

    layer, x = Scaled(16, 8), torch.randn(3, 16)
    quantized, _ = sqt.quantize(layer)
    expected = nn.functional.linear(x, scaled(quantized.weight.dequantize()), layer.bias)
    assert torch.equal(quantized(x), expected)
