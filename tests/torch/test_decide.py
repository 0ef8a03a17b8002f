"""Nothing is skipped in silence: every module with weights is in the report, with a reason where it is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

import splitquant.torch as sqt
from splitquant import PAPER, QuantSpec
from splitquant.errors import SpecError


class Twice(nn.Linear):
    """A Linear with a forward of its own, which is linear in the weight."""

    def forward(self, x):
        return 2 * super().forward(x)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 8, 6))
        self.down_proj = nn.Parameter(torch.randn(4, 6, 8))


def with_extra():
    layer = nn.Linear(3, 3)
    layer.lora = nn.Linear(3, 3)
    return layer


def with_new_forward():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x
    return layer


def with_state_hook():
    layer = nn.Linear(3, 3)
    layer.register_state_dict_post_hook(lambda *_: None)
    return layer


def pruned():
    return prune.l1_unstructured(nn.Linear(3, 3), "weight", 2)


def old_weight_norm():
    return weight_norm(nn.Linear(3, 3))


def dynamic():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 3)))[0]


KEPT = {
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
        "is parametrized (weight by _WeightNorm); call",
    ),
    "spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)),
        "is parametrized (weight by _SpectralNorm)",
    ),
    "old weight_norm": (old_weight_norm, "its weight is computed from weight_g, weight_v (weight_norm"),
    "pruning": (pruned, "its weight is computed from weight_orig"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "nn.MultiheadAttention reads in_proj_weight as it is"),
    "LSTM": (lambda: nn.LSTM(3, 3), "a recurrent layer"),
    "GRUCell": (lambda: nn.GRUCell(3, 3), "a recurrent layer"),
    "Embedding": (lambda: nn.Embedding(3, 3), "an embedding is a table of rows"),
    "EmbeddingBag": (
        lambda: nn.EmbeddingBag(3, 3),
        "EmbeddingBag is no linear or convolution layer; it holds weight [3, 3]",
    ),
    "Bilinear": (lambda: nn.Bilinear(2, 3, 4), "Bilinear is no linear or convolution layer; it holds weight [4, 2, 3]"),
    "lazy Linear": (lambda: nn.LazyLinear(3), "is lazily initialised; run one batch"),
    "lazy BatchNorm": (nn.LazyBatchNorm1d, "is lazily initialised; run one batch"),
    "meta": (lambda: nn.Linear(3, 3, device="meta"), "is on the meta device and has no values"),
    "experts": (Experts, "experts held as raw parameters (gate_up_proj [4, 8, 6], down_proj [4, 6, 8])"),
    "norm": (lambda: nn.LayerNorm(3), "no matrix"),
    "fp8": (lambda: nn.Linear(3, 3).to(torch.float8_e4m3fn), "its weight is torch.float8_e4m3fn; expected float16"),
    "empty": (lambda: nn.Linear(3, 0), "its weight is empty"),
    "TorchScript": (lambda: torch.jit.script(nn.Linear(3, 3)), "is compiled by TorchScript; convert the model"),
    "torch.ao": (dynamic, "Linear holds its weights as buffers or packed: another library quantized it"),
}
KEPT_IN_PARALLEL = {
    "own forward": (lambda: Twice(3, 3), "Twice has a forward of its own, which need not be linear"),
    "extra layers": (with_extra, "holds more than weight and bias: lora"),
    "new forward": (with_new_forward, "its forward was replaced on this very module"),
    "state_dict hooks": (with_state_hook, "has state_dict hooks"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("convert", [sqt.split, sqt.quantize])
def test_kept_and_named(convert, name):
    """What cannot be converted stays as it is, and the report says why; the rest is converted all the same."""
    make, reason = KEPT[name]
    model = nn.ModuleDict({"odd": make(), "layer": nn.Linear(3, 3)})
    before = model["odd"]
    converted, report = convert(model, inplace=True)
    assert converted["odd"] is before
    assert report["odd"].outcome == "kept"
    assert report["odd"].reason.startswith(reason)
    assert report["layer"].outcome != "kept"


@pytest.mark.parametrize("name", KEPT_IN_PARALLEL)
def test_kept_in_the_parallel_layout(name):
    """What need not be a plain linear layer is not split, and is quantized in the fused layout."""
    make, reason = KEPT_IN_PARALLEL[name]
    for convert in (sqt.split, lambda model, **how: sqt.quantize(model, PAPER, **how)):
        _, report = convert(nn.ModuleDict({"odd": make()}), inplace=True)
        assert report["odd"].outcome == "kept"
        assert report["odd"].reason.startswith(reason)
    assert sqt.quantize(nn.ModuleDict({"odd": make()}), inplace=True).report["odd"].outcome == "quantized"


def test_a_subclass_is_split_when_it_is_named():
    """Who names a subclass in include vouches that it is linear in its weight."""
    model = nn.ModuleDict({"odd": Twice(3, 3)})
    split, report = sqt.split(model, include=["odd"])
    assert report["odd"].reason == "included by 'odd'"
    assert [type(part) for part in split["odd"].parts] == [Twice] * 3
    x = torch.randn(2, 3)
    assert torch.allclose(split["odd"](x), model["odd"](x), atol=1e-6)


def test_after_the_remedy_it_is_split():
    """What the reasons advise works."""
    layer = parametrizations.weight_norm(nn.Linear(3, 3))
    parametrize.remove_parametrizations(layer, "weight")
    lazy = nn.LazyConv2d(2, 3)
    lazy(torch.randn(1, 3, 4, 4))
    cut = pruned()
    prune.remove(cut, "weight")
    _, report = sqt.split(nn.ModuleList([layer, lazy, cut]))
    assert [module.outcome for module in report.modules] == ["split"] * 3


def test_multihead_attention():
    """The projections that attention reads raw are kept and named, the layers around them are split, and all still runs."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    split, report = sqt.split(model)
    assert [(row.name, row.outcome) for row in report.modules] == [
        ("self_attn", "kept"),
        ("self_attn.out_proj", "kept"),
        ("linear1", "split"),
        ("linear2", "split"),
        ("norm1", "kept"),
        ("norm2", "kept"),
    ]
    assert report["self_attn.out_proj"].reason == (
        "nn.MultiheadAttention reads its weight and does not call it; quantize it in the fused layout"
    )
    x = torch.randn(2, 5, 8)
    assert torch.allclose(split(x), model(x), atol=1e-5)
    with torch.no_grad():  # the fast path, which reads the weights of linear1 and linear2 from outside
        assert torch.allclose(split(x), model(x), atol=1e-5)
    quantized, report = sqt.quantize(model)
    assert report["self_attn.out_proj"].outcome == "quantized"
    with torch.no_grad():
        assert torch.allclose(quantized(x), sqt.merge(quantized).model(x), atol=1e-5)


def test_a_shared_module():
    """A module with two names is split once, is still one module, and has a row under each name."""
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared])})
    for convert in (sqt.split, sqt.quantize):
        converted, report = convert(model)
        assert converted["a"] is converted["b"][0]
        assert report["b.0"].reason == "the same module as 'a'"
        assert report["b.0"].outcome == report["a"].outcome != "kept"
        assert report.figures == report["a"].figures
        assert sqt.merge(converted).model["b"][0] is not None
    assert sqt.split(model, exclude=["b.*"]).report["a"].reason == "excluded by 'b.*'"


@pytest.mark.parametrize("spec", [sqt.SPLIT, PAPER, QuantSpec()], ids=str)
def test_tied_weights(spec):
    """A weight of two layers becomes parts (or codes) of two layers, with biases of their own, and merges back to one."""
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    converted, report = (sqt.split if spec is sqt.SPLIT else sqt.quantize)(model, spec)
    assert report["b"].reason == "its weight is that of 'a', and is shared as before"
    if spec.layout == "parallel":
        assert all(p.weight is q.weight for p, q in zip(converted["a"].parts, converted["b"].parts, strict=True))
    else:
        assert converted["a"].weight is converted["b"].weight
    merged, _ = sqt.merge(converted)
    assert merged["a"].weight is merged["b"].weight
    assert torch.equal(merged["b"].bias, model["b"].bias)


def test_tied_to_something_that_is_kept():
    """A weight that an embedding reads too stays one weight, so neither is split."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    model["head"].weight = model["embed"].weight
    split, report = sqt.split(model)
    assert report["head"].reason == "its weight is that of 'embed', which is kept"
    assert split["head"].weight is split["embed"].weight


def test_a_weight_of_another_library():
    """A weight that is a tensor of another class is somebody else's, and is named."""

    class Foreign(torch.Tensor):
        pass

    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.randn(3, 3).as_subclass(Foreign))
    for convert in (sqt.split, sqt.quantize):
        _, report = convert(nn.ModuleDict({"layer": layer}), inplace=True)
        assert report["layer"].reason == "its weight is a Foreign: quantized or distributed by another library"


def test_every_module_with_weights_is_listed():
    """The rows are the modules that hold parameters, no more and no less; the table names each."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3), nn.LSTM(3, 3)
    )
    _, report = sqt.split(model)
    assert [row.name for row in report.modules] == ["0", "1", "4", "5"]
    assert [row.name for row in report.changed] == ["0"]
    assert [row.name for row in report.kept] == ["1", "4", "5"]
    assert len(str(report).splitlines()) == 5
    with pytest.raises(KeyError, match="2"):
        report["2"]


def test_parts_without_values():
    """Parts on the meta device cannot be merged, and are named."""
    split, _ = sqt.split(nn.Sequential(nn.Linear(3, 3)))
    _, report = sqt.merge(split.to("meta"))
    assert report["0"].reason == "is on the meta device and has no values; load its weights first"


def test_patterns_name_layers_and_not_their_parts():
    """The parts of a split layer are its own affair: a pattern for one matches nothing, and says so."""
    split, _ = sqt.split(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(SpecError, match=r"the pattern '0\.parts\.\*' matches none of the 1 modules"):
        sqt.quantize(split, exclude=["0.parts.*"])
