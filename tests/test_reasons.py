"""One order of reasons, whatever is quantized: the same cases through folders, PyTorch modules and ONNX files.

Every adapter brings the same model: `up` and `down` are linear, `embed` is a table, `norm` can never be quantized, `tiny` would
not get smaller, `layers[0]` and `layers[1]` have names that look like globs. Each calls them by names of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import splitquant
from builders.folders import write_folder
from splitquant import EMBEDDING, QuantSpec
from splitquant.errors import SpecError, TensorError
from splitquant.plan.decide import decide
from splitquant.plan.layers import Layer
from splitquant.plan.recipe import Recipe

SPEC = QuantSpec(4, 1)
LINEAR = ("up", "down", "layers[0]", "layers[1]")


def weight(number, *shape):
    """Weights like those of a layer."""
    return np.random.default_rng(number).standard_normal(shape, dtype=np.float32) * np.float32(0.1)


WEIGHTS = {name: weight(number, 64, 64) for number, name in enumerate(LINEAR)} | {
    "embed": weight(8, 40, 64),
    "norm": np.ones(64, np.float32),
    "tiny": weight(9, 1, 1),
}


class Folder:
    """Tensors of a checkpoint: `up` is `up.weight`."""

    def __init__(self, place, weights=WEIGHTS):
        self.path = write_folder(place / "m", {self.name(name): array for name, array in weights.items()})
        self.place = place

    @staticmethod
    def name(layer):
        return f"{layer}.weight"

    def decided(self, **options):
        """Spec and reason of every layer."""
        plan = splitquant.dry_run(self.path, **options)
        return {d.name.removesuffix(".weight"): (d.spec, d.reason) for d in plan.decisions}

    def convert(self, **options):
        report = splitquant.quantize(self.path, self.place / "q", force=True, **options)
        return {o.name.removesuffix(".weight"): o.outcome for o in report.outcomes}


class Modules:
    """Modules of a network: `up` is the module `up`, of a class as PyTorch has it."""

    def __init__(self, place, weights=WEIGHTS):
        import torch
        from torch import nn

        self.model = nn.Module()
        for name, array in weights.items():
            module = {
                "embed": lambda shape: nn.Embedding(*shape),
                "norm": nn.LayerNorm,
            }.get(name, lambda shape: nn.Linear(shape[1], shape[0], bias=False))(array.shape)
            module.weight = nn.Parameter(torch.from_numpy(array.copy()))
            self.model.add_module(name, module)

    @staticmethod
    def name(layer):
        return layer

    def decided(self, **options):
        import splitquant.torch as sqt

        report = sqt.quantize(self.model, **{"embeddings": "auto", **options}).report
        return {o.name: (o.spec, o.reason) for o in report.outcomes}

    def convert(self, **options):
        import splitquant.torch as sqt

        return {o.name: o.outcome for o in sqt.quantize(self.model, embeddings="auto", **options).report.outcomes}


class Nodes:
    """Nodes of a graph: `up` is the node `up`, whose weight is `up.W`."""

    def __init__(self, place, weights=WEIGHTS):
        import onnx
        from onnx import TensorProto, helper

        from builders.onnx_models import model, value

        nodes, inputs, outputs = [], [], []
        for name, array in weights.items():
            table = name == "embed"
            feeds = [f"{name}.W", f"{name}.x"] if table else [f"{name}.x", f"{name}.W"]
            nodes.append(helper.make_node("Gather" if table else "MatMul", feeds, [f"{name}.y"], name=name))
            inputs.append(value(f"{name}.x", [3] if table else [3, array.shape[0]], TensorProto.INT64 if table else 1))
            outputs.append(value(f"{name}.y", None))
        made = model(nodes, inputs, outputs, {f"{name}.W": array for name, array in weights.items()})
        onnx.save(made, place / "m.onnx")
        self.path, self.place = place / "m.onnx", place

    @staticmethod
    def name(layer):
        return layer

    def decided(self, **options):
        return {d.name: (d.spec, d.reason) for d in splitquant.dry_run(self.path, **options).decisions}

    def convert(self, **options):
        report = splitquant.quantize(self.path, self.place / "q.onnx", force=True, **options)
        return {o.name: o.outcome for o in report.outcomes}


def needing(adapter, *packages):
    """An adapter, where its packages are installed."""
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.param(adapter, marks=pytest.mark.skipif(bool(missing), reason=f"{missing} not installed"))


ADAPTERS = [Folder, needing(Modules, "torch"), needing(Nodes, "onnx")]


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: adapter.__name__.lower())
def adapter(request, tmp_path):
    """Each adapter in turn."""
    return request.param(tmp_path)


@dataclass(frozen=True)
class Case:
    """What is asked, of which layer, and what must become of it.

    options: patterns are in the names of this file. spec: None keeps it. reason: how it begins ("": there is none).
    """

    id: str
    layer: str
    spec: QuantSpec | None
    reason: str
    options: dict[str, Any] = field(default_factory=dict)


def include(*patterns, **more):
    return {"include": patterns, **more}


def exclude(*patterns, **more):
    return {"exclude": patterns, **more}


FOUR = QuantSpec(4, 1, symmetric=True)
SMALL = "would not get smaller ("
CASES = [
    Case("a weight", "up", SPEC, ""),
    Case("a table", "embed", EMBEDDING, ""),
    Case("too small", "tiny", None, SMALL),
    # impossible, before everything else
    Case("impossible, and included", "norm", None, "?", include("norm*")),
    Case("impossible, and excluded", "norm", None, "?", exclude("norm*")),
    # excluded
    Case("excluded", "up", None, "excluded by 'up*'", exclude("up*")),
    Case("excluded by its name", "up", None, "excluded by <up>", exclude("<up>")),
    Case("its name before any glob", "up", None, "excluded by <up>", exclude("u*", "<up>")),
    Case("the first glob", "up", None, "excluded by 'u*'", exclude("d*", "u*", "up*")),
    Case("others are not", "down", SPEC, "", exclude("up*")),
    Case("excluded table", "embed", None, "excluded by 'emb*'", exclude("emb*")),
    Case(
        "excluded before embeddings are kept", "embed", None, "excluded by 'emb*'", exclude("emb*", embeddings="keep")
    ),
    Case("excluded before it is too small", "tiny", None, "excluded by 'tiny*'", exclude("tiny*")),
    # names that look like globs
    Case("a name with brackets", "layers[0]", None, "excluded by <layers[0]>", exclude("<layers[0]>")),
    Case("and no other", "layers[1]", SPEC, "", exclude("<layers[0]>")),
    Case("brackets, included", "layers[0]", SPEC, "included by <layers[0]>", include("<layers[0]>", exclude="*")),
    Case("brackets as a glob", "layers[1]", None, "excluded by 'layers[[]1]*'", exclude("layers[[]1]*")),
    # included: wins over exclude and kept embeddings, not over the two last
    Case("included", "up", SPEC, "included by 'up*'", include("up*")),
    Case("included and excluded", "up", SPEC, "included by 'up*'", include("up*", exclude="*")),
    Case("only what is included", "down", None, "excluded by '*'", include("up*", exclude="*")),
    Case("included, and too small", "tiny", None, SMALL, include("tiny*")),
    Case("embeddings are kept", "embed", None, "embeddings are kept", {"embeddings": "keep"}),
    Case(
        "included while they are kept", "embed", EMBEDDING, "included by 'embed*'", include("embed*", embeddings="keep")
    ),
    Case("embeddings of another width", "embed", FOUR, "", {"embeddings": 4}),
    Case("included embeddings", "embed", FOUR, "included by 'embed*'", include("embed*", embeddings=4, exclude="*")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_reasons(adapter, case):
    """Every adapter gives the same spec for the same reason."""

    def named(text):
        for name in WEIGHTS:
            text = text.replace(f"<{name}>", adapter.name(name))
        return text

    options = {"spec": SPEC, **case.options}
    for patterns in ("include", "exclude"):
        if patterns in options:
            given = options[patterns]
            options[patterns] = named(given) if isinstance(given, str) else [named(one) for one in given]
    spec, reason = adapter.decided(**options)[case.layer]
    expected = case.reason
    if "<" in expected:
        start, name = expected.split("<")
        expected = start + repr(adapter.name(name.removesuffix(">")))
    assert spec == case.spec
    if expected == "?":
        assert reason
        assert not reason.startswith(("included", "excluded"))
    elif expected == SMALL:
        assert reason.startswith(SMALL)
    else:
        assert reason == expected


@pytest.mark.parametrize("patterns", ["include", "exclude"])
def test_patterns_that_find_nothing(adapter, patterns):
    """A slip is an error that names it, wherever it is made."""
    for pattern in ("nothing*", "layers[0]x", "UP*"):
        with pytest.raises(SpecError, match=r"the pattern .* matches none of the") as error:
            adapter.decided(spec=SPEC, **{patterns: [pattern]})
        assert repr(pattern) in str(error.value)


def test_a_text_is_one_pattern(adapter):
    assert adapter.decided(spec=SPEC, exclude="u*")["up"] == (None, "excluded by 'u*'")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_advice_of_errors_works(kind, tmp_path):
    """NaN in a weight whose name looks like a glob: what the error says to exclude is what helps, and nothing else stays."""
    bad = weight(3, 64, 64)
    bad[5, 7] = np.nan
    made = kind(tmp_path, {**WEIGHTS, "layers[0]": bad})
    with pytest.raises(TensorError, match="holds NaN or infinity") as error:
        made.convert(spec=SPEC)
    quoted = [part for part in str(error.value).split("'") if part.startswith("layers[0]")]
    assert quoted
    outcomes = made.convert(spec=SPEC, exclude=[quoted[-1]])
    assert {name: outcomes[name] for name in LINEAR} == dict.fromkeys(LINEAR, "quantized") | {"layers[0]": "kept"}


def test_taste():
    """A rule of taste comes after exclude and gives way to include; folders and modules have such rules."""
    layer = Layer("gate", "linear", "F32", (64, 64), 64 * 64 * 4, kept_because="a matter of taste")
    for options, reason in (
        ({}, "a matter of taste"),
        (exclude("gate"), "excluded by 'gate'"),
        (include("gate"), "included by 'gate'"),
    ):
        (decision,) = decide([layer], Recipe(SPEC, **options)).decisions
        assert decision.reason == reason
        assert (decision.spec is None) == ("include" not in options)


def test_taste_of_folders(tmp_path):
    source = write_folder(tmp_path / "m", {"mlp.gate.weight": weight(1, 64, 64), "up.weight": weight(2, 64, 64)})
    for options, reason in (
        ({}, "expert router"),
        (exclude("*.gate.*"), "excluded by '*.gate.*'"),
        (include("*.gate.*"), "included by '*.gate.*'"),
    ):
        assert splitquant.dry_run(source, **options).decisions[0].reason == reason


def test_taste_of_modules():
    torch = pytest.importorskip("torch")
    import splitquant.torch as sqt

    class Twice(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = torch.nn.ModuleDict({"odd": Twice(64, 64), "up": torch.nn.Linear(64, 64)})
    parallel = QuantSpec(4, 2, layout="parallel")
    for options, reason in (
        ({}, "Twice has a forward of its own"),
        (exclude("odd"), "excluded by 'odd'"),
        (include("odd"), "included by 'odd'"),
    ):
        assert sqt.quantize(model, parallel, **options).report["odd"].reason.startswith(reason)


def shared_modules(exclude=(), include=()):
    """What becomes of two modules that share a weight."""
    torch = pytest.importorskip("torch")
    import splitquant.torch as sqt

    model = torch.nn.ModuleDict({name: torch.nn.Linear(64, 64, bias=False) for name in ("one", "two")})
    model["two"].weight = model["one"].weight
    report = sqt.quantize(model, SPEC, include=include, exclude=exclude).report
    return {o.name: (o.outcome, o.reason) for o in report.outcomes}


def shared_nodes(exclude=(), include=()):
    """What becomes of two nodes that share a weight."""
    pytest.importorskip("onnx")
    from onnx import helper

    import splitquant.onnx as sqo
    from builders.onnx_models import model, value

    nodes = [helper.make_node("MatMul", [f"{name}.x", "W"], [f"{name}.y"], name=name) for name in ("one", "two")]
    ends = [[value(f"{name}.{end}", [3, 64]) for name in ("one", "two")] for end in "xy"]
    report = sqo.quantize(
        model(nodes, *ends, {"W": weight(1, 64, 64)}), spec=SPEC, include=include, exclude=exclude
    ).report
    return {
        o.name: (o.outcome, o.reason.removesuffix("; shares its weight with a node before")) for o in report.outcomes
    }


@pytest.mark.parametrize("shared", [shared_modules, shared_nodes], ids=["modules", "nodes"])
@pytest.mark.parametrize("first", ["one", "two"])
def test_shared_with_what_is_kept(shared, first):
    """The last of the reasons: a weight is quantized wherever it is read, or nowhere."""
    other = {"one": "two", "two": "one"}[first]
    found = shared(exclude=[first])
    assert found[first] == ("kept", f"excluded by {first!r}")
    assert found[other] == ("kept", f"its weight is that of {first!r}, which is kept")
    found = shared(exclude=[first], include=[other])
    assert [outcome for outcome, _ in found.values()] == ["kept", "kept"]
    assert {outcome for outcome, _ in shared().values()} == {"quantized"}
