"""quantize by a size, a target or a plan: the laws of the budget, held on whole models."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

import splitquant.torch as sqt
from splitquant import EMBEDDING, PAPER, QuantSpec
from splitquant.errors import SpecError, TensorError
from splitquant.plan.options import PlanOptions
from splitquant.plan.planner import KEPT
from splitquant.plan.saved import plan_to_dict
from splitquant.plan.targets import target_of
from splitquant.torch.measure import measure_modules
from splitquant.torch.plan import plan_quantize


class Net(nn.Module):
    """A table and the head that is tied to it, convolutions, layers of different sizes, and what stays float."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(120, 32)
        self.conv = nn.Conv1d(32, 24, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm1d(24)
        self.back = nn.ConvTranspose1d(24, 16, 3, padding=1)
        self.wide = nn.Linear(16, 96)
        self.narrow = nn.Linear(96, 32)
        self.gate = nn.Linear(4, 1)  # too small for anything
        self.head = nn.Linear(32, 120, bias=False)
        scales = (0.02, 0.1, 0.3, 0.05, 0.04, 0.1)
        for layer, scale in zip(
            (self.embed, self.conv, self.back, self.wide, self.narrow, self.gate), scales, strict=True
        ):
            layer.weight.data = torch.distributions.StudentT(4.0).sample(layer.weight.shape) * scale
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.norm(self.conv(self.embed(ids).transpose(1, 2)))
        x = self.narrow(functional.relu(self.wide(self.back(x).transpose(1, 2))))
        return self.head(x * self.gate(x[..., :4]).sigmoid())


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def measured():
    """What was measured already, by layer, candidates and weights."""
    return {}


@pytest.fixture(autouse=True)
def _measure_once(monkeypatch, measured):
    """A net that is quantized to many sizes is measured once."""

    def measure(modules, asked):
        keys = [(layer, pool, float(modules[layer.name].weight.double().sum())) for layer, pool in asked]
        new = [number for number, key in enumerate(keys) if key not in measured]
        found = measure_modules(modules, [asked[number] for number in new])
        measured.update(zip((keys[number] for number in new), found, strict=True))
        return [measured[key] for key in keys]

    monkeypatch.setattr("splitquant.torch.plan.measure_modules", measure)


IDS = torch.arange(60).reshape(4, 15)
WAYS = {
    "plain": {},
    "with embeddings": {"embeddings": "auto"},
    "embeddings of 8 bits": {"embeddings": 8},
    "an embedding by name": {"include": "embed"},
    "without a layer": {"embeddings": "auto", "exclude": "wide"},
    "per channel": {"embeddings": "auto", "fixed": {"granularity": "channel"}},
    "parallel": {"embeddings": "auto", "fixed": {"layout": "parallel", "granularity": "channel"}},
    "residual": {"fixed": {"strategy": "residual", "clusters": 2}},
    "a target": {"embeddings": "auto", "target": "xnnpack"},
    "a codebook": {"embeddings": "auto", "target": "coreml"},
    "relative": {"embeddings": "auto", "weighting": "relative"},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))


def chosen(report):
    """The rows of weights that there was a choice for, each weight once."""
    return [row for row in report if row.source_bytes and (row.spec is not None or row.reason == KEPT)]


def bits_of(report):
    """Stored bits per weight, of the weights that there was a choice for."""
    rows = chosen(report)
    return 8 * sum(row.stored_bytes for row in rows) / sum(row.weights for row in rows)


def bytes_of(model):
    """All that the state_dict holds, each tensor once: parameters, buffers, planes, and the shape of every packed weight."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())


def smallest_of(model, unit, **way):
    """The smallest size that an error names."""
    with pytest.raises(SpecError) as error:
        sqt.quantize(model, **{unit: 1e-3 if unit == "target_bits" else 1}, **way)
    pattern = {
        "target_bits": r"target-bits is 0\.001; the smallest possible here is ([0-9.]+) stored bits per weight: allow more",
        "target_size": r"target-size is 1 bytes; the smallest plan makes an output of ([0-9]+) bytes: allow more",
    }
    found = re.match(pattern[unit], str(error.value))
    assert found is not None, error.value
    return float(found[1]) if unit == "target_bits" else int(found[1])


def assert_tied(model, report):
    """The head is still the table, by the same spec."""
    assert model.head.weight is model.embed.weight
    assert report["head"].spec == report["embed"].spec
    assert report["head"].source_bytes == report["head"].stored_bytes == 0
    if report["embed"].spec is not None:
        assert model.embed.weight.packing.spec == report["embed"].spec


@each_way
def test_never_more_bits_and_never_more_noise(net, way):
    """At most so many stored bits per weight, from the smallest that an error names; with more of them never more noise."""
    smallest = smallest_of(net, "target_bits", **way)
    with pytest.raises(SpecError, match=f"target-bits is .*; the smallest possible here is {smallest:.3f} stored bits"):
        sqt.quantize(net, target_bits=smallest - 0.002, **way)
    budgets = [smallest, *(bits for bits in (2.9, 3.3, 4.0, 4.01, 4.6, 5.5, 7.0, 9.0, 12.0, 40.0) if bits > smallest)]
    noises = []
    for bits in budgets:
        model, report = sqt.quantize(net, target_bits=bits, **way)
        assert bits_of(report) <= bits
        assert report["gate"].reason.startswith("would not get smaller")
        assert_tied(model, report)
        assert torch.isfinite(model(IDS)).all()
        noises.append(weighed(report, way))
    assert all(less <= more * (1 + 1e-6) for more, less in pairwise(noises))
    assert noises[-1] < 0.1 * noises[0]
    assert 8 * bits_of(sqt.quantize(net, target_bits=smallest, **way).report) > 8 * smallest - 0.1


def weighed(report, way):
    """The noise that the plan weighs: of each weight, or of each relative to its signal."""
    rows = [row.figures for row in report if row.figures is not None]
    return sum(row.noise / (row.signal if way.get("weighting") == "relative" else 1.0) for row in rows)


@each_way
def test_never_more_bytes(net, way):
    """The whole model takes at most so many bytes: exactly what the error names as the smallest, and not one less."""
    hold_the_law_of_bytes(net, way)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_never_more_bytes_in_other_dtypes(net, dtype):
    """That holds for models of every float dtype, whose planes have other sizes."""
    hold_the_law_of_bytes(net.to(dtype), {"embeddings": "auto", "fixed": {"bits": (2, 4, 8)}})


def hold_the_law_of_bytes(net, way):
    """Quantize a net to sizes from the smallest upwards."""
    smallest, full = smallest_of(net, "target_size", **way), bytes_of(net)
    assert smallest < full
    model, report = sqt.quantize(net, target_size=smallest, **way)
    assert bytes_of(model) == smallest
    assert full - smallest == report.source_bytes - report.stored_bytes
    with pytest.raises(SpecError, match=f"the smallest plan makes an output of {smallest} bytes"):
        sqt.quantize(net, target_size=smallest - 1, **way)
    noises = [weighed(report, way)]
    for share in (0.03, 0.1, 0.3, 0.55, 0.8):
        size = smallest + int(share * (full - smallest))
        model, report = sqt.quantize(net, target_size=size, **way)
        assert bytes_of(model) <= size
        assert_tied(model, report)
        noises.append(weighed(report, way))
    assert all(less <= more * (1 + 1e-6) for more, less in pairwise(noises))
    assert noises[-1] < noises[0]


def test_a_size_may_be_text(net):
    """ "20KB" is a size, and other text is an error."""
    model, report = sqt.quantize(net, target_size="16KB", embeddings="auto")
    assert bytes_of(model) <= 16_000
    assert report == sqt.quantize(net, target_size=16_000, embeddings="auto").report
    with pytest.raises(SpecError, match="16 pages"):
        sqt.quantize(net, target_size="16 pages")


def test_more_than_enough_changes_nothing(net):
    """Where everything fits as it is, everything is kept, and the report says whose doing that is."""
    model, report = sqt.quantize(net, target_size="1GB", embeddings="auto")
    assert report.changed == ()
    assert {row.reason for row in chosen(report)} == {KEPT}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net.parameters(), strict=True))


def test_the_same_again(net, measured):
    """The same model and options give the same bytes, also in place."""
    one, report = sqt.quantize(net, target_bits=4.5, embeddings="auto")
    measured.clear()
    other, again = sqt.quantize(copy.deepcopy(net), target_bits=4.5, embeddings="auto", inplace=True)
    assert report == again
    assert same_states(one, other)


def same_states(one, other):
    """Whether two models hold the same tensors, bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_choice_pays(net):
    """A choice by layer loses less than one spec for all of the same size."""
    _, alike = sqt.quantize(net, QuantSpec(), embeddings=QuantSpec())
    _, report = sqt.quantize(net, target_bits=bits_of(alike), embeddings="auto")
    assert len({row.spec for row in report.changed}) > 1
    assert report.stored_bytes <= alike.stored_bytes
    assert report.figures.noise < alike.figures.noise


@pytest.mark.parametrize(
    "fixed",
    [
        {"bits": 4},
        {"bits": (3, 5), "clusters": 1},
        {"granularity": "group:32", "symmetric": True},
        {"layout": "parallel", "clusters": 2},
    ],
    ids=str,
)
def test_fixed_fields_hold(net, fixed):
    """What is fixed holds for all layers, by a size and, where a field has one value, without one; the rest is chosen."""
    allowed = {name: values if isinstance(values, tuple) else (values,) for name, values in fixed.items()}
    for size in ({"target_bits": 7.5}, {"target_size": 24_000}):
        model, report = sqt.quantize(net, fixed=fixed, **size)
        assert len(report.changed) > 1
        for spec in {row.spec for row in report.changed}:
            assert all(spec in [replace(spec, **{name: value}) for value in values] for name, values in allowed.items())
        assert torch.isfinite(model(IDS)).all()
    if all(len(values) == 1 for values in allowed.values()):
        _, report = sqt.quantize(net, fixed=fixed)
        assert {row.spec for row in report.changed} == {QuantSpec(**fixed)}


@pytest.mark.parametrize("size", [{}, {"target_bits": 8.5}], ids=["best", "by size"])
@pytest.mark.parametrize("name", ["linear-asym", "onnxruntime", "intel-npu", "xnnpack", "coreml"])
def test_what_a_target_runs(net, name, size):
    """With a target every layer becomes what it can run, by its best spec or by a size."""
    fixed = {"granularity": "channel", "bits": (4, 8)} if size else {}
    model, report = sqt.quantize(net, target=name, fixed=fixed, **size)
    assert {row.name for row in report.changed} >= {"wide", "narrow"}
    for row in report.changed:
        target_of(name).refuse(row.spec)
    assert torch.isfinite(model(IDS)).all()


def test_what_a_target_does_not_run(net):
    """A spec that it cannot run is refused, and so is a target that nobody knows."""
    with pytest.raises(SpecError, match="target is 'toaster'; expected one of linear-asym"):
        sqt.quantize(net, target="toaster")
    with pytest.raises(
        SpecError, match=r"the target xnnpack \(.*\) cannot run asymmetric grids; it takes symmetric ones"
    ):
        sqt.quantize(net, QuantSpec(layout="parallel"), target="xnnpack")


def test_weighting(net):
    """What counts more loses no more than before, and what counts nothing is as small as can be."""
    plain = sqt.quantize(net, target_bits=4.5).report
    heavy = sqt.quantize(net, target_bits=4.5, weighting={"conv": 1e9}).report
    light = sqt.quantize(net, target_bits=4.5, weighting={"conv": 0, "*": 1}).report
    least = sqt.quantize(net, target_bits=smallest_of(net, "target_bits")).report
    assert heavy["conv"].figures is None or heavy["conv"].figures.noise < plain["conv"].figures.noise
    assert light["conv"].stored_bytes == least["conv"].stored_bytes < plain["conv"].stored_bytes
    with pytest.raises(
        SpecError, match="the weighting names 'convolution', which is none of the 4 tensors to choose for"
    ):
        sqt.quantize(net, target_bits=4.5, weighting={"convolution": 1})
    with pytest.raises(SpecError, match="weighting is 'loud'; expected 'energy', 'relative'"):
        sqt.quantize(net, target_bits=4.5, weighting="loud")


@pytest.fixture
def plan_file(tmp_path):
    """Writes a plan."""

    def write(tensors):
        path = tmp_path / "plan.json"
        path.write_text(json.dumps({"plan_version": 1, "tensors": tensors}))
        return path

    return write


def test_plan_file(net, plan_file):
    """A plan says what becomes of every module; one that is not named is kept, and a tied one goes with its table."""
    tensors = {"embed": {"bits": 6, "clusters": 1}, "head": {"bits": 3}, "wide": {"bits": 3, "strategy": "lloyd"}}
    tensors |= {"narrow": PAPER.to_dict(), "conv": "keep"}
    model, report = sqt.quantize(net, plan_file=plan_file(tensors))
    assert report["embed"].spec == report["head"].spec == QuantSpec(bits=6, clusters=1)
    assert_tied(model, report)
    assert report["wide"].spec == QuantSpec(bits=3, strategy="lloyd")
    assert isinstance(model.narrow, sqt.SplitLayer)
    assert (report["conv"].reason, report["back"].reason) == ("kept by the plan file", "kept by the plan file")
    assert report["norm"].reason == "no matrix: a normalization, a scale or a bias"
    assert torch.isfinite(model(IDS)).all()


def test_a_plan_of_one_of_two_that_share_a_weight(net, plan_file):
    """A plan that keeps one of two layers with one weight keeps both, with the reason."""
    _, report = sqt.quantize(net, plan_file=plan_file({"embed": {"bits": 6}, "head": "keep"}))
    assert report["embed"].reason == "its weight is that of 'head', which is kept"
    assert report.changed == ()


@each_way
def test_a_saved_plan_gives_the_same_model(net, way, plan_file):
    """The plan of a size, written and read back, makes the same bytes."""
    by_size, report = sqt.quantize(net, target_bits=6, **way)
    _, plan = plan_quantize(net, PlanOptions(**{"embeddings": None, "target_bits": 6, **way}))
    by_plan, again = sqt.quantize(net, plan_file=plan_file(plan_to_dict(plan)["tensors"]))
    assert [row.spec for row in report] == [row.spec for row in again]
    assert report.stored_bytes == again.stored_bytes
    assert same_states(by_size, by_plan)


def test_a_plan_may_grow(plan_file):
    """What a plan names is quantized even where it does not get smaller."""
    _, report = sqt.quantize(nn.Sequential(nn.Linear(2, 2)), plan_file=plan_file({"0": {"bits": 4}}))
    assert report["0"].outcome == "quantized"
    assert report["0"].stored_bytes > report["0"].source_bytes


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"narow": {"bits": 4}},
            r"plan\.json: names tensor 'narow', which the model does not have; did you mean 'narrow'\?",
        ),
        (
            {"norm": {"bits": 4}},
            r"tensor 'norm' cannot be quantized, no matrix: a normalization, a scale or a bias; write",
        ),
        ({"wide": {"bits": 40}}, r"tensor 'wide': bits is 40; expected 2 to 8"),
        ({"wide": 4}, r"tensor 'wide' has 4; expected a spec"),
    ],
)
def test_plans_that_do_not_fit(net, plan_file, tensors, said):
    """A plan of another model, or of no spec, is an error that names the file and the module; nothing is changed."""
    with pytest.raises(SpecError, match=said):
        sqt.quantize(net, plan_file=plan_file(tensors), inplace=True)
    assert isinstance(net.wide.weight, nn.Parameter)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spec": QuantSpec(), "target_bits": 4}, "a spec and a target size are given"),
        ({"spec": QuantSpec(), "fixed": {"bits": 4}}, "a spec and fixed fields of one are given"),
        ({"target_bits": 4, "target_size": 4000}, "give one of target-bits and target-size"),
        ({"target_bits": 0}, "target-bits is 0; expected stored bits per weight"),
        ({"weighting": "relative"}, "weighting needs target-bits or target-size"),
        ({"fixed": {"bit": 4}, "target_bits": 4}, "unknown key 'bit' among the fixed options"),
        ({"target_bits": 4, "embeddings": PAPER}, "expected the layout 'fused'"),
        ({"target_bits": 4, "exclude": "wid"}, "the pattern 'wid' matches none of the 8 modules with weights"),
        ({"target_bits": 4, "exclude": "*"}, "Net: has no tensor that can be quantized under these options"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(net, options, said):
    """They are refused before anything is changed."""
    with pytest.raises(SpecError, match=said):
        sqt.quantize(net, inplace=True, **options)
    assert not any(isinstance(module, sqt.PackedWeight) for module in net.modules())


def test_nan_by_size(net):
    """Weights that cannot be measured are an error with the module's name, and the model is as it was."""
    net.narrow.weight.data[3, 5] = torch.nan
    with pytest.raises(TensorError, match=r"module 'narrow' \(Linear\) holds NaN or infinity.*name it in exclude"):
        sqt.quantize(net, target_bits=4, inplace=True)
    assert isinstance(net.wide.weight, nn.Parameter)
    assert sqt.quantize(net, target_bits=4, exclude="narrow").report["wide"].outcome == "quantized"


def test_embeddings_are_kept_unless_they_are_asked_for(net):
    """By a size too: kept, by the spec that is given, by INT8 where one is included, or whatever is best."""

    def spec_of(**options):
        report = sqt.quantize(net, target_bits=8, **options).report
        assert report["head"].spec == report["embed"].spec
        return report["embed"].spec

    assert spec_of() is None
    assert spec_of(include="embed") == EMBEDDING
    assert spec_of(embeddings=5) == QuantSpec(bits=5, clusters=1, symmetric=True)
    assert spec_of(embeddings=QuantSpec(bits=3)) == QuantSpec(bits=3)
    best = spec_of(embeddings="auto", include="embed")
    assert best is not None
    assert best.clusters == 1  # what every look-up can read


def test_activations_by_size(net):
    """Inputs of layers that a size chose for are on the grid."""
    model, report = sqt.quantize(net, target_bits=5, embeddings="auto", activations="int8-token")
    grids = {row.name: row.activations for row in report.changed}
    assert {name for name, grid in grids.items() if not grid} <= {"embed"}
    assert model.wide.weight.activations == sqt.DynamicInt8()
    assert torch.isfinite(model(IDS)).all()


def test_merge_after_a_size(net):
    """merge takes a model of many specs back to floats."""
    for fixed in ({}, {"layout": "parallel", "granularity": "channel"}):
        model, report = sqt.quantize(net, target_bits=6, embeddings="auto", fixed=fixed)
        merged, back = sqt.merge(model)
        assert merged.head.weight is merged.embed.weight
        assert {row.name for row in back.changed} == {row.name for row in report.changed}
        with torch.no_grad():
            assert torch.allclose(merged(IDS), model(IDS), atol=1e-4)


def test_a_model_that_is_one_layer():
    """A single layer is chosen for too, and is put in the place of what is returned."""
    layer = nn.Linear(48, 32)
    model, report = sqt.quantize(layer, target_bits=4.5)
    assert isinstance(model.weight, sqt.PackedWeight)
    assert bits_of(report) <= 4.5
    parallel = {"target_bits": 8, "fixed": {"layout": "parallel", "clusters": 2, "granularity": "channel"}}
    assert isinstance(sqt.quantize(layer, **parallel).model, sqt.SplitLayer)
    with pytest.raises(SpecError, match=r"itself a Linear and cannot be replaced in place"):
        sqt.quantize(layer, inplace=True, **parallel)
    assert isinstance(layer.weight, nn.Parameter)


def test_what_cannot_be_in_parts_is_kept_by_size_too():
    """Where k layers are among the candidates, what they ask of a layer decides before the size does."""
    layer = nn.TransformerEncoderLayer(32, 2, 48, batch_first=True).eval()
    fixed = {"layout": "parallel", "clusters": 2, "granularity": "channel"}
    _, report = sqt.quantize(layer, target_bits=8, fixed=fixed)
    assert report["self_attn.out_proj"].reason == (
        "nn.MultiheadAttention reads its weight and does not call it; quantize it in the fused layout"
    )
    assert {row.name for row in report.changed} == {"linear1", "linear2"}


def in_file(model):
    """The bytes of the tensors of a state_dict, those in the same memory once."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())


# Guards against: of a packed weight that two layers share the state_dict holds `shape` twice, in two tensors; counted is one.
def test_never_more_bytes_in_the_state_dict_of_tied_layers(net):
    """The smallest size holds for what torch.save writes."""
    smallest = smallest_of(net, "target_size", embeddings="auto")
    model, _ = sqt.quantize(net, target_size=smallest, embeddings="auto")
    assert in_file(model) <= smallest


# Guards against: ModelCosts.rest leaves out the `shape` of weights that were packed before (it is no buffer).
def test_never_more_bytes_where_some_are_packed_already():
    """What was quantized before counts too, with its shape."""
    model, _ = sqt.quantize(nn.Sequential(nn.Linear(32, 16), nn.Linear(32, 16)), exclude="1")
    smallest = smallest_of(model, "target_size")
    model, report = sqt.quantize(model, target_size=smallest)
    assert report["0"].reason == "is quantized already; merge it first"
    assert in_file(model) == bytes_of(model) <= smallest


# Guards against: ModelCosts.rest counts buffers that are in no state_dict (those of rotary embeddings, for instance), so that
# sizes are refused that can be had.
def test_buffers_that_are_not_stored_take_no_bytes():
    """Only what is in the state_dict counts."""
    model = nn.Sequential(nn.Linear(32, 16))
    model.register_buffer("frequencies", torch.randn(100), persistent=False)
    smallest = smallest_of(model, "target_size")
    assert in_file(sqt.quantize(model, target_size=smallest).model) == smallest


# Guards against: each part but the first of transformers' Conv1D has a bias of zeros (`split_layer.sister`), which no price counts.
def test_never_more_bytes_of_parts_that_cannot_do_without_a_bias():
    """The zeros that parts hold for a bias count too."""
    utils = pytest.importorskip("transformers.pytorch_utils")
    way = {"fixed": {"layout": "parallel", "clusters": 3, "granularity": "channel"}}
    model = nn.Sequential(utils.Conv1D(24, 64))
    smallest = smallest_of(model, "target_size", **way)
    assert bytes_of(sqt.quantize(model, target_size=smallest, **way).model) <= smallest


# Guards against (a ValueError of PyTorch): ModelCosts.of asks uninitialized parameters how many numbers they have.
@pytest.mark.parametrize("size", [{"target_bits": 4.5}, {"target_size": "6KB"}], ids=str)
def test_lazy_modules_by_size(size):
    """A module without values is kept with its reason, as without a size."""
    _, report = sqt.quantize(nn.Sequential(nn.Linear(64, 32), nn.LazyLinear(8)), **size)
    assert report["0"].outcome == "quantized"
    assert report["1"].reason == "is lazily initialised; run one batch through the model first"


# Guards against: `frontier_of` takes the candidates by the role of the layer that comes first, also where it shares its weight
# with a table: the table is then not quantized as `embeddings` says, and can even become k tables.
@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({"embeddings": EMBEDDING}, lambda spec: spec == EMBEDDING),
        ({"embeddings": "auto"}, lambda spec: spec.clusters == 1),
        ({"embeddings": "auto", "fixed": {"layout": "parallel", "clusters": 2}}, lambda spec: spec.layout == "fused"),
    ],
    ids=["spec", "auto", "parallel"],
)
def test_a_head_before_its_table(options, fits):
    """A table decides for a head that shares its weight, whichever comes first."""
    model = nn.ModuleDict({"head": nn.Linear(32, 64, bias=False), "embed": nn.Embedding(64, 32)})
    model["head"].weight = model["embed"].weight
    model, report = sqt.quantize(model, target_bits=9.5, **options)
    assert report["head"].spec == report["embed"].spec
    assert fits(report["embed"].spec)
    assert isinstance(model["embed"].weight, sqt.PackedWeight)


# Guards against: what is included has no candidate that keeps it, so a small layer gets one that takes more than its weight.
def test_what_is_included_does_not_grow_by_size():
    """Nothing that a size chooses takes more than it took."""
    model = nn.ModuleDict({"large": nn.Linear(64, 64), "small": nn.Linear(8, 4)})
    _, report = sqt.quantize(model, target_bits=30, include="small")
    assert [row.name for row in report if row.stored_bytes > row.source_bytes] == []


def with_lora():
    layer = nn.Linear(16, 8)
    layer.lora = nn.Linear(16, 8)
    return layer


# Guards against: `plan_quantize` asks of the layers what the default spec asks of them, not what the plan file's specs do. `lora`
# is lost without a word, out_proj becomes parts that are never called, a table becomes k tables that are added.
@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (with_lora, "odd", "holds more than weight and bias: lora"),
        (lambda: nn.MultiheadAttention(16, 2), "odd.out_proj", "reads its weight and does not call it"),
        (lambda: nn.Embedding(30, 24), "odd", "a table|layout 'fused'"),
    ],
    ids=["extra layers", "attention", "embedding"],
)
def test_a_plan_of_parts_for_what_cannot_be_in_parts(plan_file, make, name, said):
    """A plan is held to the same rules as any other wish, with an error that names the module."""
    model = nn.ModuleDict({"odd": make()})
    with pytest.raises(SpecError, match=said):
        sqt.quantize(model, plan_file=plan_file({name: {"bits": 4, "layout": "parallel"}}))


# Guards against: "leave out exclude", though nothing is excluded: PlanOptions._explicit knows an empty tuple, not an empty list.
def test_empty_lists_beside_a_plan(net, plan_file):
    """No patterns are no patterns in a list too."""
    _, report = sqt.quantize(net, plan_file=plan_file({"wide": {"bits": 4}}), include=[], exclude=[])
    assert [row.name for row in report.changed] == ["wide"]


# Guards against (an AttributeError): a plan file that is named by a text is neither read nor refused.
def test_the_name_of_a_plan_may_be_text(net, plan_file):
    """A path is a path, whatever holds it."""
    path = plan_file({"wide": {"bits": 4}})
    assert sqt.quantize(net, plan_file=str(path)).report == sqt.quantize(net, plan_file=path).report
