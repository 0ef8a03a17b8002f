"""What a target's toolchain can store, and the strategy and number of parts that lose least there.

Facts about vendors come from their own pages, which docs/targets.md cites. What is best comes from figures:
`benchmarks/quality/targets.py` measures every candidate and holds the tables here against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from splitquant.core.spec import QuantSpec
from splitquant.core.strategies import Strategy, facts_of
from splitquant.errors import SpecError
from splitquant.plan.explicit import explicit_spec
from splitquant.plan.recipe import embedding_spec

GridKind = Literal["linear-asym", "linear-sym", "linear-asym-refit", "linear-sym-refit", "codebook"]

MOST_PARTS = 3  # the paper's
MOST_BITS = 12  # of all parts of a weight: the paper's three INT4 layers


class Cut(NamedTuple):
    """How a tensor is split, apart from its bits and its granularity."""

    strategy: Strategy
    clusters: int


STRATEGIES_BY_PARTS: Mapping[GridKind, tuple[tuple[Strategy, ...], ...]] = MappingProxyType(
    {
        "linear-asym": (("min_error",), ("residual", "magnitude"), ("residual", "min_error")),
        "linear-sym": (("min_error",), ("residual", "magnitude"), ("residual", "magnitude")),
        "linear-asym-refit": (("min_error",), ("residual", "magnitude"), ("residual", "min_error")),
        "linear-sym-refit": (("min_error",), ("magnitude",), ("magnitude",)),
        "codebook": (("lloyd",), ("lloyd",), ("lloyd",)),
    }
)
"""For one, two, and three or more parts the strategies of least error; the first that the bits allow is the best.

`-refit`: the parts stay float, and another tool quantizes them; if it is symmetric, its grids may not be ours.
"""

PARTS: Mapping[GridKind, Mapping[int, int]] = MappingProxyType(
    {
        "linear-asym": {2: 3, 3: 2, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1},
        "linear-sym": {2: 3, 3: 2, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1},
        "linear-asym-refit": {2: 3, 3: 2, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1},
        "linear-sym-refit": {2: 3, 3: 3, 4: 3, 5: 2, 6: 2, 7: 1, 8: 1},
        "codebook": dict.fromkeys(range(2, 9), 1),
    }
)
"""The best number of parts per width of a code, at most the paper's three and 12 bits for all parts of a weight."""


def best_cut(kind: GridKind, bits: int, clusters: int | None = None) -> Cut:
    """The best strategy for a number of parts (None: the best number)."""
    parts = PARTS[kind].get(bits, 1) if clusters is None else clusters
    possible = STRATEGIES_BY_PARTS[kind][min(parts, MOST_PARTS) - 1]
    return Cut(next((s for s in possible if is_possible(s, bits, parts)), possible[-1]), parts)


def is_possible(strategy: Strategy, bits: int, clusters: int) -> bool:
    """Whether there is a spec with these."""
    try:
        QuantSpec(bits=bits, clusters=clusters, strategy=strategy)
    except SpecError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Target:
    """What a toolchain can store.

    Args:
        name, what: for the user.
        grids: per width of a stored code, the granularities, the default first; `group` stands for groups of any size.
        symmetric: only signed grids centred on zero.
        codebook: any levels, one table per tensor, codes are indices; else integer layers, with zero in every grid.
        narrow: whether the target's own quantizer lays symmetric grids as we do: at 4 bits codes from -7 to 7, absmax / 7
            apart. Asymmetric min-max grids need no such field: all of these tools lay them as we do.
        one_layer: whether one layer of 8 bits (of 4 bits in groups of 32) is what it runs best, and several parts are no gain.
        own: the granularity that the target's own quantizer takes unless told otherwise ("": the default of `grids`).
    """

    name: str
    what: str
    grids: Mapping[int, tuple[str, ...]]
    symmetric: bool = False
    codebook: bool = False
    narrow: bool = False
    one_layer: bool = False
    own: str = ""

    def kind(self, *, symmetric: bool, refit: bool) -> GridKind:
        """The kind of grid that is to be filled; `refit` where another tool quantizes the parts."""
        if self.codebook:
            return "codebook"
        if symmetric:
            return "linear-sym-refit" if refit and not self.narrow else "linear-sym"
        return "linear-asym-refit" if refit else "linear-asym"

    def refuse(self, spec: QuantSpec) -> None:
        """SpecError where the target cannot run what a spec makes."""
        width = self.width_of(spec)
        what = "indices" if self.codebook else "codes"
        if width not in self.grids:
            raise self.refusal(f"{what} of {width} bits", f"{', '.join(map(str, self.grids))} bits")
        if not self.takes(width, str(spec.granularity)):
            raise self.refusal(f"granularity '{spec.granularity}' at {width} bits", ", ".join(self.grids[width]))
        if self.symmetric and not spec.symmetric:
            raise self.refusal("asymmetric grids", "symmetric ones")
        if not self.codebook and not spec.zero_in_grid:
            raise self.refusal(f"{spec}, which has no zero in its grids", "the parallel layout")

    def refuse_strategy(self, strategy: Any) -> None:
        """SpecError where a strategy makes nothing that the target can run."""
        if facts_of(strategy).free_levels and not self.codebook:
            raise self.refusal(f"the strategy {strategy}, whose levels are free", "integer layers")

    def width_of(self, spec: QuantSpec) -> int:
        """Bits of what the target would see as one weight: an index of a table, or the code of one layer."""
        return spec.code_bits + spec.cluster_bits if self.codebook else spec.bits

    def takes(self, width: int, granularity: str) -> bool:
        """Whether weights that share a scale may be this many, at this width."""
        allowed = self.grids.get(width, ())
        return granularity in allowed or ("group" in allowed and granularity.startswith("group:"))

    def refusal(self, found: str, expected: str) -> SpecError:
        """The error that names the target, what it was to run, and what it takes."""
        return SpecError(f"the target {self.name} ({self.what}) cannot run {found}; it takes {expected}")


_ANY = ("channel", "tensor", "group")
_ROWS = ("channel", "tensor")
_WIDTHS = range(2, 9)
_BLOCKS = tuple(f"group:{16 << n}" for n in range(5))  # 16 to 256

_TARGETS = (
    Target("linear-asym", "integer layers with a scale and a zero point", dict.fromkeys(_WIDTHS, _ANY), narrow=True),
    Target("linear-sym", "integer layers with a scale", dict.fromkeys(_WIDTHS, _ANY), symmetric=True, narrow=True),
    Target("codebook", "indices into a table of floats", dict.fromkeys(_WIDTHS, _ANY), codebook=True),
    Target(
        "onnxruntime",
        "ONNX Runtime on a CPU",
        dict.fromkeys((2, 4, 8), (*_ROWS, *_BLOCKS)),
        one_layer=True,
        own="group:128",
    ),
    Target("openvino", "OpenVINO on a CPU", {4: (*_ROWS, *_BLOCKS), 8: _ROWS}, one_layer=True, own="group:128"),
    Target("intel-npu", "OpenVINO on an Intel NPU", {4: ("channel", "group:128"), 8: ("channel",)}, symmetric=True),
    Target("coreml", "Core ML palettes", dict.fromkeys((2, 3, 4, 6, 8), ("tensor", "channel")), codebook=True),
    Target("litert", "LiteRT (TensorFlow Lite)", dict.fromkeys((4, 8), (*_ROWS, *_BLOCKS[1:])), symmetric=True),
    Target("xnnpack", "ExecuTorch on XNNPACK", {4: ("channel", "group"), 8: _ROWS}, symmetric=True),
    Target("ethos-u", "Arm Ethos-U", dict.fromkeys((4, 8), _ROWS), symmetric=True),
    Target("qnn", "Qualcomm AI Engine Direct", dict.fromkeys((4, 8), _ROWS), symmetric=True),
    Target("tensorrt", "NVIDIA TensorRT", {4: ("group:128", "group"), 8: _ROWS}, symmetric=True),
)
TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _TARGETS})


def target_of(name: str) -> Target:
    """The target of a name; SpecError lists the names."""
    if not isinstance(name, str) or name not in TARGETS:
        raise SpecError(f"target is {name!r}; expected one of {', '.join(TARGETS)}")
    return TARGETS[name]


def spec_for(target: str, *, refit: bool = False, **explicit: Any) -> QuantSpec:
    """The spec for a target: what is explicit, and the best choice for the rest.

    target: a name of `TARGETS`. explicit: fields of `QuantSpec` that are decided; they win over the choice.
    refit: the parts stay float, and the target's own quantizer takes them over (`split`).
    Raises SpecError for an unknown name, and for what the target cannot run.
    """
    goal = target_of(target)
    usual: dict[str, Any] = {"bits": 4}
    if goal.one_layer and not refit and not explicit.get("clusters") and not explicit.get("strategy"):
        usual = {"bits": 8, "clusters": 1, **({"granularity": "group:32"} if explicit.get("bits") in (2, 4) else {})}
    values: dict[str, Any] = {**usual, "symmetric": goal.symmetric, **explicit}
    bits, clusters, strategy = values["bits"], values.get("clusters") or 0, values.get("strategy")
    QuantSpec(bits=bits, clusters=clusters)  # refuses what are no numbers of either
    if goal.codebook and refit:
        raise goal.refusal("float parts", "one table per tensor: quantize instead of splitting")
    goal.refuse_strategy(strategy)
    if bits in goal.grids:
        own = refit and goal.takes(bits, goal.own)
        values.setdefault("granularity", goal.own if own else goal.grids[bits][0])
    values.setdefault("layout", "fused" if goal.codebook else "parallel")
    values.setdefault("polish", False if refit else None)  # a min-max quantizer lays no fitted grids
    kind = goal.kind(symmetric=values["symmetric"], refit=refit)
    try:
        spec = explicit_spec(explicit, **{**values, **_cut(kind, bits, strategy, clusters or None)._asdict()})
    except SpecError as error:
        raise SpecError(f"the target {goal.name} ({goal.what}): {error}") from None
    goal.refuse(spec)
    return spec


def embeddings_for(target: str | None, choice: QuantSpec | int | str | None) -> QuantSpec | None:
    """The spec of embeddings, see `embedding_spec`; SpecError where the target cannot run it."""
    spec = embedding_spec(choice)
    if target is not None and spec is not None:
        try:
            target_of(target).refuse(spec)
        except SpecError as error:
            raise SpecError(f"embeddings {spec}: {error}; keep them, or choose another width") from None
    return spec


def _cut(kind: GridKind, bits: int, strategy: Strategy | None, clusters: int | None) -> Cut:
    """Strategy and clusters: as said, else the best that goes with what was said."""
    if strategy is None:
        return best_cut(kind, bits, clusters)
    if clusters is not None:
        return Cut(strategy, clusters)
    best = best_cut(kind, bits)
    if strategy == best.strategy:
        return best
    if kind == "codebook":
        return Cut(strategy, 0)  # the default of the layout
    most = (k for k in range(MOST_PARTS, 0, -1) if k * bits <= MOST_BITS and is_possible(strategy, bits, k))
    return Cut(strategy, next(most, 1))
