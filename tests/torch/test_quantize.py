"""quantize: low-bit weights in any module, fused or as k integer layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import splitquant.torch as sqt
from splitquant import EMBEDDING, PAPER, QuantSpec, quantize_array
from splitquant.errors import SpecError, TensorError
from splitquant.torch.parts import integer_parts

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
    (nn.Linear(13, 6), (2, 13), 0),
    (nn.Conv1d(12, 6, 3, padding=1, padding_mode="circular", groups=2), (1, 12, 9), 0),
    (nn.Conv2d(3, 6, 3, dilation=2), (1, 3, 9, 9), 0),
    (nn.Conv3d(4, 3, 2, bias=False), (1, 4, 4, 4, 4), 0),
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
    quantized, _ = sqt.quantize(nn.Linear(16, 3))
    with pytest.raises(TensorError, match=r"has no zero_point: its grids need not hold zero"):
        quantized.weight.zero_point()


def test_default_is_the_best_fused_spec():
    """Without a spec it is QuantSpec(), and the layer keeps its class, name and hooks."""
    model = nn.Sequential(nn.Linear(24, 10))
    quantized, report = sqt.quantize(model)
    assert report["0"].spec == QuantSpec()
    assert type(quantized[0]) is nn.Linear
    assert isinstance(quantized[0].weight, sqt.PackedWeight)
    assert str(report).startswith("1 of 1 layers changed\nquantized  0  Linear  10x24  F32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_report(dtype):
    """Every row has what its weight is, took and takes, in the terms of every other report."""
    model = nn.ModuleDict({"embed": nn.Embedding(30, 24), "norm": nn.LayerNorm(24), "conv": nn.Conv1d(24, 8, 3)})
    model["head"] = nn.Linear(24, 30, bias=False)
    model["head"].weight = model["embed"].weight
    quantized, report = sqt.quantize(model.to(dtype), exclude="conv", embeddings=8)
    assert len(report) == 4
    assert list(report) == list(report.outcomes) == [*report.outcomes]
    assert [(row.name, row.kind, row.role) for row in report] == [
        ("embed", "Embedding", "embedding"),
        ("norm", "LayerNorm", "other"),
        ("conv", "Conv1d", "conv"),
        ("head", "Linear", "linear"),
    ]
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
    assert {row.dtype for row in report} == {names[dtype]}
    assert [row.shape for row in report] == [(30, 24), (24,), (8, 24, 3), (30, 24)]
    sizes = [parameter.numel() * dtype.itemsize for parameter in (model[n].weight for n in ("embed", "norm", "conv"))]
    assert [row.source_bytes for row in report] == [*sizes, 0]
    assert [row.stored_bytes for row in report] == [bytes_of(quantized["embed"].weight), *sizes[1:], 0]
    assert (report.source_bytes, report.stored_bytes) == (sum(sizes), sum(row.stored_bytes for row in report))
    assert [row.outcome for row in report] == ["quantized", "kept", "kept", "quantized"]
    assert [row.name for row in report.changed] == ["embed", "head"]
    assert [row.name for row in report.kept] == ["norm", "conv"]
    assert report["embed"].figures == report.figures
    assert [row.figures is None for row in report] == [False, True, True, True]
    assert isinstance(report, sqt.Report)
    assert isinstance(report["norm"], sqt.Outcome)
    with pytest.raises(KeyError):
        report["norm.weight"]


@pytest.mark.parametrize(
    ("spec", "parts"),
    [(QuantSpec(), 1), (PAPER, 3), (QuantSpec(2, 3, "residual"), 3), (QuantSpec(3, strategy="lloyd"), 1)],
)
def test_stored_bytes_are_those_of_the_planes(spec, parts):
    """What the report says a layer takes is what its packed weights take, of one and of k layers."""
    quantized, report = sqt.quantize(nn.Conv2d(9, 6, 3), spec)
    packed = [module for module in quantized.modules() if isinstance(module, sqt.PackedWeight)]
    assert len(packed) == parts
    assert report[""].stored_bytes == sum(map(bytes_of, packed))
    assert report[""].bits_per_weight == 8 * report.stored_bytes / (6 * 81)


@pytest.mark.parametrize("spec", [QuantSpec(), PAPER], ids=str)
def test_what_would_not_get_smaller(spec):
    """A layer whose planes take as many bytes as its weight, or more, stays, with both numbers; include changes nothing."""
    fates = []
    for cols in range(1, 20):
        layer = nn.Linear(cols, 3)
        found = quantize_array(layer.weight.detach().numpy(), spec)
        parallel = spec.layout == "parallel"
        packed = integer_parts(found, layer.weight) if parallel else [sqt.PackedWeight.from_split(found, torch.float32)]
        planes, before = sum(map(bytes_of, packed)), 12 * cols
        for include in ((), "0"):
            quantized, report = sqt.quantize(nn.Sequential(layer), spec, include)
            row = report["0"]
            kept = isinstance(quantized[0].weight, nn.Parameter)
            assert kept == (planes >= before) == (row.outcome == "kept")
            assert (row.source_bytes, row.stored_bytes) == (before, before if kept else planes)
            if kept:
                assert row.reason == f"would not get smaller ({planes} bytes instead of {before})"
                assert (row.spec, row.figures) == (None, None)
        fates.append(row.outcome)
    assert fates == sorted(fates)  # "kept" comes before "quantized"
    assert set(fates) == {"kept", "quantized"}


def test_as_many_bytes_are_not_fewer():
    """Nothing is gained where both take the same, so the layer keeps its exact weights; nor in whatever shares them."""
    model = nn.ModuleDict({"a": nn.Linear(11, 6), "b": nn.Linear(11, 6)})
    model["b"].weight = model["a"].weight
    _, report = sqt.quantize(model, QuantSpec(bits=2, clusters=4, layout="parallel"))
    assert {row.reason for row in report} == {"would not get smaller (264 bytes instead of 264)"}


def bytes_of(packed):
    """What a packed weight takes."""
    return sum(plane.numel() * plane.dtype.itemsize for plane in packed.planes().values())


def test_a_single_layer_in_place():
    """A fused weight goes into the layer itself."""
    layer = nn.Linear(24, 10)
    assert sqt.quantize(layer, inplace=True).model is layer
    assert isinstance(layer.weight, sqt.PackedWeight)
    assert isinstance(sqt.merge(layer, inplace=True).model.weight, nn.Parameter)


def test_gradients_reach_inputs_and_biases():
    """The codes are frozen; what is before and beside them still learns."""
    for spec in (QuantSpec(), PAPER):
        quantized, _ = sqt.quantize(nn.Linear(16, 3), spec)
        x = torch.randn(2, 16, requires_grad=True)
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
    assert report["embed"].reason == "embeddings are kept"
    assert report["head"].reason == "its weight is that of 'embed', which is kept"
    quantized, report = sqt.quantize(model, embeddings=EMBEDDING)
    assert quantized["embed"].weight is quantized["head"].weight
    assert report["embed"].spec == report["head"].spec == EMBEDDING
    assert report["head"].reason == "its weight is that of 'embed', and is shared as before"
    merged, _ = sqt.merge(quantized)
    assert merged["embed"].weight is merged["head"].weight


@pytest.mark.parametrize("spec", [QuantSpec(bits=3), PAPER], ids=str)
def test_an_embedding_that_is_included(spec):
    """By name, while embeddings are kept, it is quantized as embeddings usually are, whatever the layers are quantized by."""
    model = nn.ModuleDict({"embed": nn.Embedding(30, 24), "head": nn.Linear(24, 30, bias=False)})
    model["own"], model["other"] = nn.Linear(24, 30), nn.Embedding(30, 24)
    model["head"].weight = model["embed"].weight
    included, report = sqt.quantize(model, spec, include=["embed"])
    assert (report["embed"].outcome, report["embed"].reason) == ("quantized", "included by 'embed'")
    assert report["embed"].spec == report["head"].spec == EMBEDDING
    assert included["embed"].weight is included["head"].weight
    assert included["embed"].weight.packing.spec == EMBEDDING
    expected = quantize_array(model["embed"].weight.detach().numpy(), EMBEDDING).dequantize()
    assert np.array_equal(included["embed"](torch.arange(30)).numpy(), expected)
    assert report["own"].spec == spec
    assert report["other"].reason == "embeddings are kept"
    _, report = sqt.quantize(model, spec, include=["embed"], embeddings=4)
    assert {report[name].spec.bits for name in ("embed", "head", "other")} == {4}


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        (4, QuantSpec(bits=4, clusters=1, symmetric=True)),
        ("auto", EMBEDDING),
        (QuantSpec(bits=3), QuantSpec(bits=3)),
        ("5", QuantSpec(bits=5, clusters=1, symmetric=True)),
        (None, None),
        ("keep", None),
    ],
    ids=str,
)
def test_what_embeddings_can_be(given, spec):
    """A spec, a number of bits (plain, a scale per row, symmetric), "auto", or nothing."""
    model = nn.Sequential(nn.Embedding(30, 24), nn.Linear(24, 10))
    quantized, report = sqt.quantize(model, embeddings=given)
    assert (report["0"].spec, report["1"].spec) == (spec, QuantSpec())
    assert isinstance(quantized[0].weight, nn.Parameter) == (spec is None)
    assert torch.isfinite(quantized(torch.arange(30))).all()


@pytest.mark.parametrize("given", ["8bit", 9, 1.5])
def test_what_embeddings_cannot_be(given):
    """Anything else is refused, before anything is done."""
    model = nn.Sequential(nn.Embedding(30, 24))
    with pytest.raises(SpecError, match=r"expected .*2 to 8"):
        sqt.quantize(model, embeddings=given, inplace=True)
    assert isinstance(model[0].weight, nn.Parameter)


def test_parallel_embeddings():
    """A table of rows is not the sum of layers, and the error says so."""
    with pytest.raises(SpecError, match=r"embeddings is INT4 k=3 kmeans tensor parallel; expected the layout 'fused'"):
        sqt.quantize(nn.Sequential(nn.Embedding(3, 3)), embeddings=PAPER)


def test_quantized_twice_or_after_split():
    """What is converted already is kept and named; merge undoes it first."""
    model = nn.Sequential(nn.Linear(16, 3))
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


# Guards against: `embedding_spec` cuts what is no whole number of bits.
def test_embeddings_of_half_a_bit():
    """A number of bits is a whole number; another is refused, not rounded."""
    with pytest.raises(SpecError, match=r"expected .*2 to 8"):
        sqt.quantize(nn.Sequential(nn.Embedding(30, 24)), embeddings=4.7)


# Guards against (for a scale per channel of a float32 weight): the row_scales of k parts are one piece
# of memory (`integer_parts` hands the same array to each), which safetensors refuses to write.
@pytest.mark.parametrize("granularity", ["channel", "group:16", "tensor"])
def test_parts_share_no_memory(granularity):
    """Each of k integer layers has planes of its own, so that a state_dict can be written by anything."""
    quantized, _ = sqt.quantize(nn.Linear(64, 32), QuantSpec(layout="parallel", granularity=granularity))
    places = [plane.data_ptr() for plane in quantized.state_dict().values()]
    assert len(set(places)) == len(places)


def _exported():
    return torch.export.export(nn.Sequential(nn.Linear(8, 4)), (torch.zeros(1, 8),))


@pytest.mark.parametrize("verb", [sqt.quantize, sqt.split, sqt.merge])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Linear(8, 4).state_dict(), r"a state_dict of 2 entries.*load_state_dict\(\) this into it"),
        (lambda: {"a.weight": torch.zeros(4, 8)}, r"a state_dict of 1 entries"),
        (_exported, r"an ExportedProgram.*quantize the module that it was exported from"),
        (lambda: "model.safetensors", r"the path 'model\.safetensors'.*splitquant\.quantize\(source, destination\)"),
        (lambda: Path("folder"), r"the path 'folder'.*load it first"),
        (lambda: nn.Linear, r"the class Linear; expected an instance"),
        (lambda: torch.zeros(4, 8), r"a Tensor; expected a torch\.nn\.Module"),
        (lambda: None, r"a NoneType; expected a torch\.nn\.Module"),
        (dict, r"a dict; expected a torch\.nn\.Module"),
    ],
    ids=["state_dict", "dict of tensors", "ExportedProgram", "text", "path", "class", "tensor", "None", "empty dict"],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_no_module(verb, make, says, inplace):
    """What is given instead of a module is named, with what to do; no attribute of it is missed."""
    with pytest.raises(SpecError, match=f"^model is {says}"):
        verb(make(), inplace=inplace)
