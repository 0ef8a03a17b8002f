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
    layer = nn.Linear(16, 8)
    layer.lora = nn.Linear(16, 8)
    return layer


def with_new_forward():
    layer = nn.Linear(16, 8)
    layer.forward = lambda x: x
    return layer


def with_state_hook():
    layer = nn.Linear(16, 8)
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
    "attention": (lambda: nn.MultiheadAttention(8, 2), "nn.MultiheadAttention reads in_proj_weight as it is"),
    "LSTM": (lambda: nn.LSTM(3, 3), "a recurrent layer"),
    "GRUCell": (lambda: nn.GRUCell(3, 3), "a recurrent layer"),
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
    "own forward": (lambda: Twice(16, 8), "Twice has a forward of its own, which need not be linear"),
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
    model = nn.ModuleDict({"odd": make(), "layer": nn.Linear(16, 8)})
    before = model["odd"]
    converted, report = convert(model, inplace=True)
    assert converted["odd"] is before
    assert report["odd"].outcome == "kept"
    assert report["odd"].reason.startswith(reason)
    assert report["layer"].outcome != "kept"


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_quantized_says_so_whatever_the_patterns_say(name):
    """A pattern changes nothing for what cannot be converted at all, and so it is not the reason."""
    make, reason = KEPT[name]
    for patterns in ({"exclude": "odd"}, {"include": "odd"}):
        for convert in (sqt.split, sqt.quantize):
            _, report = convert(nn.ModuleDict({"odd": make()}), inplace=True, **patterns)
            assert report["odd"].outcome == "kept"
            assert report["odd"].reason.startswith(reason)


def test_embeddings_are_kept():
    """An Embedding stays: it cannot be split, and is quantized where that is asked for."""
    model = nn.ModuleDict({"odd": nn.Embedding(16, 8), "layer": nn.Linear(16, 8)})
    before = model["odd"]
    table = "an embedding is a table of rows that are looked up, not a product"
    for convert, reason in ((sqt.split, table), (sqt.quantize, "embeddings are kept")):
        converted, report = convert(model, inplace=True)
        assert converted["odd"] is before
        assert (report["odd"].outcome, report["odd"].reason) == ("kept", reason)
        assert report["layer"].outcome != "kept"
        sqt.merge(model, inplace=True)
    for patterns in ({"exclude": "odd"}, {"include": "odd"}):
        assert sqt.split(model, **patterns).report["odd"].reason == table
    assert sqt.quantize(model, exclude="odd").report["odd"].reason == "excluded by 'odd'"


@pytest.mark.parametrize("spec", [sqt.SPLIT, PAPER], ids=["split", "quantize"])
def test_the_order_of_reasons(spec):
    """What cannot be, then what the user says, then taste, then size: the first that holds is the reason."""

    def reason(module, **patterns):
        convert = sqt.split if spec is sqt.SPLIT else sqt.quantize
        return convert(nn.ModuleDict({"odd": module}), spec, inplace=True, **patterns).report["odd"].reason

    own_and_extra = with_extra()
    own_and_extra.__class__ = Twice
    assert reason(own_and_extra).startswith("holds more than weight and bias: lora")
    assert reason(own_and_extra, include="odd").startswith("holds more than weight and bias: lora")
    assert reason(own_and_extra, exclude="odd").startswith("holds more than weight and bias: lora")
    assert reason(Twice(16, 8), exclude="odd") == "excluded by 'odd'"
    assert reason(Twice(16, 8), exclude="odd", include="odd") == "included by 'odd'"
    assert reason(Twice(2, 2)).startswith("Twice has a forward of its own")
    assert reason(nn.Linear(2, 2), exclude="odd") == "excluded by 'odd'"
    too_small = "would not get smaller (78 bytes instead of 16)"
    assert reason(Twice(2, 2), include="odd") == ("included by 'odd'" if spec is sqt.SPLIT else too_small)


def test_names_that_look_like_patterns():
    """A pattern that is a module's very name finds it, before any glob does."""
    model = nn.Sequential()
    for name in ("layers[0]", "layers[1]", "layers2"):
        model.add_module(name, nn.Linear(16, 8))
    for convert in (sqt.split, sqt.quantize):
        assert [row.name for row in convert(model, exclude="layers[0]").report.kept] == ["layers[0]"]
        assert [row.name for row in convert(model, exclude="layers[12]").report.kept] == ["layers2"]
        assert [row.name for row in convert(model, exclude="*", include="layers[0]").report.changed] == ["layers[0]"]
        assert convert(model, exclude=["layers*", "layers[0]"]).report["layers[0]"].reason == "excluded by 'layers[0]'"
        with pytest.raises(SpecError, match=r"the pattern 'layers\[5\]' matches none of the 3 modules with weights"):
            convert(model, exclude="layers[5]")


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
    assert [module.outcome for module in report.outcomes] == ["split"] * 3


def test_multihead_attention():
    """The projections that attention reads raw are kept and named, the layers around them are split, and all still runs."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    split, report = sqt.split(model)
    assert [(row.name, row.outcome) for row in report.outcomes] == [
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
    shared = nn.Linear(16, 8)
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
    model = nn.ModuleDict({"a": nn.Linear(16, 8), "b": nn.Linear(16, 8)})
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
    assert [row.name for row in report.outcomes] == ["0", "1", "4", "5"]
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


def test_a_bias_that_is_no_parameter_is_kept():
    """A layer whose bias is a buffer or a plain tensor is kept with the reason: a part could not be handed it."""
    for hold in (
        lambda layer, bias: layer.register_buffer("bias", bias),
        lambda layer, bias: setattr(layer, "bias", bias),
    ):
        layer = nn.Linear(4, 3)
        bias = layer.bias.detach().clone()
        del layer.bias
        hold(layer, bias)
        model, report = sqt.split(nn.Sequential(layer))
        assert "its bias is no parameter" in report["0"].reason
        assert model[0] is not layer
        assert torch.equal(model(torch.zeros(1, 4))[0], bias)


def test_children_of_a_parametrized_module_are_seen():
    """A module with a parametrized parameter does not hide the layers inside of it."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.fc = nn.Linear(4, 4)

    block = Block()
    parametrize.register_parametrization(block, "scale", nn.Tanh())
    _, report = sqt.split(nn.Sequential(block))
    assert report["0.fc"].outcome == "split"
    assert "is parametrized" in report["0"].reason


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parts_that_were_replaced_are_named():
    """Parts that another library made other modules of are neither merged nor a traceback."""
    split, _ = sqt.split(nn.Sequential(nn.Linear(8, 8)))
    split[0].parts[1] = nn.Sequential(split[0].parts[1])
    for convert in (sqt.merge, sqt.split, sqt.quantize):
        _, report = convert(split)
        assert report["0"].outcome == "kept"
    assert "part 1 is a Sequential without a weight of its own" in sqt.merge(split)[1]["0"].reason


def test_hooks_on_the_weight_itself_are_not_lost():
    """A layer whose weight has a gradient hook is kept and named."""
    layer = nn.Linear(4, 4)
    layer.weight.register_hook(lambda grad: grad * 0)
    model = nn.Sequential(layer)
    _, report = sqt.split(model, inplace=True)
    assert "has hooks on its weight itself" in report["0"].reason


def test_members_of_a_subclass_are_not_lost():
    """A subclass with methods of its own is kept unless it is asked for."""

    class Own(nn.Linear):
        def extra(self):
            return 1

    model = nn.Sequential(Own(4, 4))
    assert "has members that Linear has not: extra" in sqt.split(model)[1]["0"].reason
    assert sqt.split(model, include="0")[1]["0"].outcome == "split"


def test_a_compiled_model_is_refused():
    """torch.compile keeps the layers it has seen, so conversion comes first."""
    with pytest.raises(SpecError, match="convert the model first"):
        sqt.split(nn.Sequential(torch.compile(nn.Linear(4, 4), backend="eager")), inplace=True)


def test_wrong_arguments_are_clear():
    """A spec that is none is refused; a text is one pattern, not many of one letter."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(SpecError, match="spec is 'paper'; expected a QuantSpec"):
        sqt.split(model, "paper")
    _, report = sqt.split(model, exclude="1")
    assert [row.outcome for row in report.outcomes] == ["split", "kept"]


def test_memory_format_is_kept():
    """A channels_last weight is split into channels_last parts, and merged into one."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    split, _ = sqt.split(model)
    assert all(part.weight.is_contiguous(memory_format=torch.channels_last) for part in split[0].parts)
    assert sqt.merge(split)[0][0].weight.is_contiguous(memory_format=torch.channels_last)


def test_position_tables_are_no_weights():
    """A matrix in a buffer is taken for somebody's weight only where it is called like one."""

    class Embeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("position_ids", torch.arange(8)[None])

    _, report = sqt.split(nn.Sequential(Embeddings(), nn.Linear(4, 4)))
    assert [row.name for row in report.outcomes] == ["1"]


def test_a_bias_given_to_another_part_is_not_lost():
    """A bias that a part got after the split keeps the layer from being merged, with the reason."""
    split, _ = sqt.split(nn.Sequential(nn.Linear(4, 4)))
    split[0].parts[1].bias = nn.Parameter(torch.ones(4))
    merged, report = sqt.merge(split)
    assert "part 1 was given a bias of its own" in report["0"].reason
    assert torch.equal(merged(torch.zeros(1, 4)), split(torch.zeros(1, 4)))


def test_layers_that_a_mixer_reads_are_kept():
    """Mamba's mixer reads two of its layers' weights and never calls the layers; they are named."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=4
    )
    _, report = sqt.split(transformers.MambaForCausalLM(config))
    for name in ("conv1d", "dt_proj"):
        assert "MambaMixer reads its weight" in report[f"backbone.layers.0.mixer.{name}"].reason
    assert report["backbone.layers.0.mixer.in_proj"].outcome == "split"


# Guards against: an included layer whose input stays float says only that it is included (`c.decision.reason or c.reason`);
# before, the reason of the float input was given.
def test_an_included_layer_whose_input_stays_float_says_so():
    """Who names attention's projection still learns that its input is not on the grid."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    _, report = sqt.quantize(model, include="attention.out_proj", activations="int8-token")
    row = report["attention.out_proj"]
    assert (row.outcome, row.activations) == ("quantized", "")
    assert "its input stays float: nn.MultiheadAttention reads its weight and does not call it" in row.reason


# Guards against: the model itself is named "", and `tied_to` of "" means that a weight is nobody else's: the weight that is shared
# with the model becomes two weights. Before, it stayed one.
def test_tied_to_the_model_itself():
    """A weight that the model itself and a layer in it share stays one weight."""
    model = nn.Linear(16, 16)
    model.inner = nn.Linear(16, 16)
    model.inner.weight = model.weight
    quantized, report = sqt.quantize(model)
    assert quantized.weight is quantized.inner.weight
    assert report.source_bytes == 4 * 256
    assert report["inner"].stored_bytes == 0


# Guards against: a parameter under another name than `weight` is taken for that of a module that is kept, even if the module is
# quantized, or is the very layer that is spoken of.
def test_who_is_said_to_be_kept_is_kept():
    """A reason that names another module is true of it."""
    model = nn.ModuleDict({"a": nn.Linear(16, 8), "b": nn.Linear(16, 8), "alone": nn.Linear(16, 8)})
    model["a"].base_weight = model["b"].weight
    model["alone"].alias = model["alone"].weight
    _, report = sqt.quantize(model)
    for row in report.kept:
        other = next(name for name in model if f"is that of {name!r}, which is kept" in row.reason)
        assert other != row.name
        assert report[other].outcome == "kept"


# Guards against: rows of a module's further names have its bytes again.
@pytest.mark.parametrize("convert", [sqt.split, sqt.quantize])
def test_a_shared_module_takes_its_bytes_once(convert):
    """Bytes are counted at the first name of a module, as figures are."""
    shared = nn.Linear(16, 8)
    _, report = convert(nn.ModuleDict({"a": shared, "b": shared}))
    assert report.source_bytes == report["a"].source_bytes == 4 * 128
    assert report.stored_bytes == report["a"].stored_bytes
    assert report["b"].source_bytes == report["b"].stored_bytes == 0


# Guards against: rows of `merge`, and of what is packed already, do not know whose weight it is (`layer_of` alone, no `tied_to`).
@pytest.mark.parametrize("convert", [sqt.merge, sqt.quantize])
def test_tied_weights_that_stay_take_their_bytes_once(convert):
    """Bytes of a weight that two modules share are counted at the first, in every report."""
    model = nn.ModuleDict({"embed": nn.Embedding(30, 24), "head": nn.Linear(24, 30, bias=False)})
    model["head"].weight = model["embed"].weight
    if convert is sqt.quantize:
        model, _ = sqt.quantize(model, embeddings=8)
    _, report = convert(model)
    assert [row.outcome for row in report] == ["kept", "kept"]
    assert report["head"].source_bytes == report["head"].stored_bytes == 0
    assert report.stored_bytes == report["embed"].stored_bytes > 0
