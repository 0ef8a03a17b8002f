"""Other people's quantizers on the split model: they take every part as a layer of its own, and lose less by it."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import splitquant.torch as sqt
from splitquant import QuantSpec
from splitquant.core.minmax import minmax_rounded


class Net(nn.Module):
    """A convolution and two Linear layers with heavy-tailed weights, as trained ones have."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.hidden = nn.Linear(16 * 36, 32)
        self.out = nn.Linear(32, 8)
        for layer in (self.conv, self.hidden, self.out):
            layer.weight.data = torch.distributions.StudentT(3.0).sample(layer.weight.shape) * 0.05

    def forward(self, x):
        return self.out(functional.relu(self.hidden(functional.relu(self.conv(x)).flatten(1))))


@pytest.fixture
def model():
    return Net().eval()


@pytest.fixture
def x():
    return torch.randn(32, 3, 8, 8)


def off(quantized, model, x):
    """The relative error of the outputs."""
    with torch.no_grad():
        expected = model(x)
        return float((quantized(x) - expected).norm() / expected.norm())


def parts_of(model):
    """The layers within split layers."""
    return [part for module in model.modules() if isinstance(module, sqt.SplitLayer) for part in module.parts]


def torchao_config(name):
    """A weight-only configuration of torchao: INT8 per channel or tensor, INT4 per channel, symmetric or not."""
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from torchao.quantization.granularity import PerAxis, PerTensor

    if name == "int8 per channel":
        return ao.Int8WeightOnlyConfig()
    if name == "int8 per tensor":
        return ao.Int8WeightOnlyConfig(granularity=PerTensor())
    mapping = ao.MappingType.SYMMETRIC if "symmetric" in name else ao.MappingType.ASYMMETRIC
    return ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0), mapping_type=mapping)


# By how much the error shrinks with k = 3, at least; measured here: 2.7, 4.9, 2.9, 2.7.
@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("int8 per channel", 1.5),
        ("int8 per tensor", 3.0),
        ("int4 per channel", 2.0),
        ("int4 per channel, symmetric", 1.4),
    ],
)
def test_torchao(model, x, name, factor):
    """torchao, weights only: all parts are quantized, and the error of the Linear layers' outputs shrinks."""
    config = torchao_config(name)
    from torchao.quantization import quantize_

    plain, split = copy.deepcopy(model), sqt.split(model, exclude=["conv"]).model
    quantize_(plain, config)
    quantize_(split, config)
    assert len(parts_of(split)) == 6
    assert not any(type(part.weight) in (nn.Parameter, torch.Tensor) for part in parts_of(split))
    assert off(split, model, x) * factor < off(plain, model, x)
    _, report = sqt.merge(split, inplace=True)
    assert report["hidden"].outcome == "kept"
    assert report["hidden"].reason.endswith("quantized or distributed by another library")


def test_two_parts_for_a_symmetric_quantizer(model, x):
    """k = 2 by value cuts near zero, and a symmetric grid then wastes half of itself in both parts; by magnitude it helps."""
    config = torchao_config("int4 per channel, symmetric")
    from torchao.quantization import quantize_

    errors = {}
    for k in (1, 2, 3):
        split = sqt.split(model, QuantSpec(clusters=k, granularity="tensor"), exclude=["conv"]).model
        quantize_(split, config)
        errors[k] = off(split, model, x)
    assert errors[3] < 0.75 * errors[1]
    assert errors[2] > 0.9 * errors[1]
    split = sqt.split(model, QuantSpec(clusters=2, strategy="magnitude", granularity="channel"), exclude=["conv"]).model
    quantize_(split, config)
    assert off(split, model, x) < 0.5 * errors[1]  # measured: 0.39


# Measured factors: 16, 5.4, 1.5 (plain INT2 has lost nearly everything), 21.
@pytest.mark.parametrize(
    ("bits", "granularity", "factor"), [(4, "channel", 8), (3, "channel", 4), (2, "channel", 1.3), (4, "group:32", 10)]
)
def test_torchao_finds_the_grid_of_a_residual_part(model, x, bits, granularity, factor):
    """torchao's asymmetric grids: it gives the first part back bit for bit, so that the second one corrects all of it."""
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from torchao.quantization.granularity import PerAxis, PerGroup

    config = ao.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerAxis(0) if granularity == "channel" else PerGroup(32),
        mapping_type=ao.MappingType.ASYMMETRIC,
    )
    spec = QuantSpec(bits, 2, "residual", granularity)
    split = sqt.split(model, spec, exclude=["conv"]).model
    before = [layer.parts[0].weight.detach().clone() for layer in (split.hidden, split.out)]
    plain = copy.deepcopy(model)
    ao.quantize_(plain, config)
    ao.quantize_(split, config)
    for layer, first in zip((split.hidden, split.out), before, strict=True):
        assert torch.equal(layer.parts[0].weight.dequantize(), first)
    assert off(split, model, x) * factor < off(plain, model, x)


def test_torchao_finds_the_codes_of_a_residual_part_in_16_bits(model):
    """In bfloat16 levels are rounded: the codes are found again, and the values within a rounding."""
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from torchao.quantization.granularity import PerAxis

    config = ao.IntxWeightOnlyConfig(torch.int4, granularity=PerAxis(0), mapping_type=ao.MappingType.ASYMMETRIC)
    spec = QuantSpec(4, 2, "residual", "channel")
    layer = nn.Sequential(model.hidden).bfloat16()
    split = sqt.split(layer, spec).model
    first = split[0].parts[0].weight.detach().clone()
    ao.quantize_(split, config)
    found = split[0].parts[0].weight
    exact = torch.from_numpy(minmax_rounded(layer[0].weight.detach().float().numpy(), spec))
    assert torch.allclose(found.dequantize(), first, rtol=2.0**-6)
    scale = (exact.amax(1) - exact.amin(1)) / 15
    assert torch.equal(found.qdata - found.zero_point, torch.round(exact / scale[:, None]).to(torch.int8))


def test_torchao_symmetric_has_no_fixed_point(model, x):
    """torchao's symmetric INT4 steps by absmax / 7.5: absmax is no level, so no first part is found again; it helps still."""
    config = torchao_config("int4 per channel, symmetric")
    from torchao.quantization import quantize_

    plain = copy.deepcopy(model)
    split = sqt.split(model, QuantSpec(4, 2, "residual", "channel", symmetric=True), exclude=["conv"]).model
    first = split.hidden.parts[0].weight.detach().clone()
    quantize_(plain, config)
    quantize_(split, config)
    assert not torch.equal(split.hidden.parts[0].weight.dequantize(), first)
    assert off(split, model, x) < 0.6 * off(plain, model, x)  # measured: 0.45


def test_torchao_full_range_finds_the_grid_of_rows_whose_largest_is_positive(model):
    """torchao's symmetric grid without clipping uses code -8 where the largest magnitude is negative, else the narrow range."""
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from torchao.quantization.granularity import PerAxis

    config = ao.IntxWeightOnlyConfig(
        torch.int4, granularity=PerAxis(0), mapping_type=ao.MappingType.SYMMETRIC_NO_CLIPPING_ERR
    )
    split = sqt.split(nn.Sequential(model.hidden), QuantSpec(4, 2, "residual", "channel", symmetric=True)).model
    first = split[0].parts[0].weight.detach().clone()
    ao.quantize_(split, config)
    same = (split[0].parts[0].weight.dequantize() == first).all(1)
    assert torch.equal(same, first.amax(1) == first.abs().amax(1))
    assert 0 < int(same.sum()) < len(same)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_pt2e_finds_the_grid_of_a_residual_part(model, x, granularity):
    """PT2E with the XNNPACK quantizer, weights symmetric INT4 in narrow range: the first parts come back bit for bit."""
    pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e", reason="torchao is not installed")
    xnnpack = pytest.importorskip("torchao.testing.pt2e._xnnpack_quantizer")

    def quantized(source):
        config = xnnpack.get_symmetric_quantization_config(
            is_per_channel=granularity == "channel", weight_qmin=-7, weight_qmax=7
        )
        prepared = pt2e.prepare_pt2e(
            torch.export.export(source, (x,)).module(), xnnpack.XNNPACKQuantizer().set_global(config)
        )
        prepared(x)
        return pt2e.convert_pt2e(prepared)

    split = sqt.split(model, QuantSpec(4, 2, "residual", granularity, symmetric=True)).model
    graph = quantized(split)
    weights = [w for w in weights_of(graph) if w.ndim > 1]
    assert len(weights) == 6
    for layer in (split.conv, split.hidden, split.out):
        assert sum(torch.equal(w, layer.parts[0].weight) for w in weights if w.shape == layer.weight.shape) == 1
    assert off(graph, model, x) * 4 < off(quantized(model), model, x)


def weights_of(graph_module):
    """The weights that a PT2E graph decodes from integer constants."""
    for node in graph_module.graph.nodes:
        if str(node.target).startswith("quantized_decomposed.dequantize") and node.args[0].op == "get_attr":
            values = [getattr(graph_module, a.target) if isinstance(a, torch.fx.Node) else a for a in node.args]
            yield node.target(*values)


@pytest.mark.parametrize("per_channel", [False, True])
def test_pt2e(model, x, per_channel):
    """PT2E with the XNNPACK quantizer (weights symmetric INT8, activations INT8): each branch is quantized, less is lost."""
    pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e", reason="torchao is not installed")
    xnnpack = pytest.importorskip("torchao.testing.pt2e._xnnpack_quantizer")

    def quantized(source):
        quantizer = xnnpack.XNNPACKQuantizer()
        quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=per_channel))
        prepared = pt2e.prepare_pt2e(torch.export.export(source, (x,)).module(), quantizer)
        prepared(x)
        return pt2e.convert_pt2e(prepared)

    split = quantized(sqt.split(model).model)
    names = [str(node.target) for node in split.graph.nodes]
    assert sum(name.startswith(("aten.conv2d", "aten.linear")) for name in names) == 9
    weights = [node for node in split.graph.nodes if str(node.target).startswith("quantized_decomposed.dequantize")]
    constants = [node for node in weights if node.args[0].op == "get_attr"]
    assert len(constants) == 9
    assert off(split, model, x) < (1.0 if per_channel else 0.6) * off(quantized(model), model, x)


@pytest.mark.parametrize(("weights", "factor"), [("qint8", 2.0), ("qint4", 2.0), ("qint2", 3.0)])
def test_quanto(model, x, weights, factor, monkeypatch):
    """optimum-quanto, weights only: all parts become its layers, and the error shrinks; its layers are kept and named."""
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    from optimum.quanto.library.extensions import get_extension

    def unpack(packed, bits):
        return torch.cat([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)])

    # else its C++ extension would be compiled here, for minutes
    monkeypatch.setattr(get_extension("quanto_cpp"), "_lib", SimpleNamespace(unpack=unpack))
    plain, split = copy.deepcopy(model), sqt.split(model).model
    floats = parts_of(copy.deepcopy(split))
    for one in (plain, split):
        quanto.quantize(one, weights=getattr(quanto, weights))
        quanto.freeze(one)
    assert {type(part).__name__ for part in parts_of(split)} == {"QConv2d", "QLinear"}
    assert off(split, model, x) * factor < off(plain, model, x)
    zeros = torch.cat([q.weight.dequantize()[p.weight == 0] for p, q in zip(floats, parts_of(split), strict=True)])
    assert bool((zeros == 0).all()) == (weights == "qint8")  # its other grids do not hold zero, as docs/torch.md warns
    _, report = sqt.split(plain, inplace=True)
    assert [row.outcome for row in report.outcomes] == ["kept"] * 3
    assert "quantized or distributed by another library" in report["hidden"].reason


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_read_after_torchao():
    """Code that reads the weight of a split layer instead of calling it still works when torchao has quantized the parts."""
    torchao = pytest.importorskip("torchao.quantization")
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    split, _ = sqt.split(layer)
    torchao.quantize_(split, torchao.Int8WeightOnlyConfig())
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        assert torch.allclose(split(x), layer(x), atol=0.1)
        assert split.linear1.weight.shape == (64, 32)
