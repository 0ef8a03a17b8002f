"""What to do with one tensor, as a frozen value, and the table of facts of every bit width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

from splitquant.core.granularity import Granularity, GranularityField
from splitquant.core.strategies import FACTS, LAYOUTS, MAX_CLUSTERS, STRATEGIES, Facts, Layout, Strategy
from splitquant.errors import SpecError

ZeroPoints = Literal["own", "shared"]


@dataclass(frozen=True, slots=True)
class Width:
    """The facts of one code width: how many codes there are and which of them a symmetric grid uses."""

    bits: int
    codes: int
    symmetric_zero: int  # the code that means 0 in a symmetric grid
    symmetric_steps: int  # steps on either side of it: signed, narrow range


WIDTHS: Mapping[int, Width] = MappingProxyType(
    {bits: Width(bits, 1 << bits, 1 << (bits - 1), (1 << (bits - 1)) - 1) for bits in range(2, 9)}
)
CLUSTER_ID_BITS: Mapping[int, int] = MappingProxyType({k: (k - 1).bit_length() for k in range(1, MAX_CLUSTERS + 1)})


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """What to do with one tensor.

    bits: width of a code, 2 to 8.
    clusters: number k of parts, 1 to 8; 0 means the default (4 fused, 3 parallel, 2 residual).
    strategy: how a tensor is split, see the table.
    granularity: `tensor`, `channel` or `group:N`, see `Granularity`.
    symmetric: every grid is signed, narrow range and centred on zero.
    layout: `fused` (a code and a cluster id per weight; each grid covers its cluster's own range) or `parallel`
        (the paper's k layers; zero is exactly representable in every grid). With one cluster both are plain quantization.
    polish: whether grids are fitted to the values, see `core.polish` and `core.own`; else they follow from ranges. None means
        yes for `min_error`, `magnitude` and `residual` where there are several clusters or own zero_points, else no.
    zero_points: `own`: every row (or group) has a zero_point of its own beside its row_scale, and so a grid of its own.
        Possible, and the default, for asymmetric plain grids (one cluster, no free levels) with row_scales; all others are
        `shared`: one set of levels per tensor times the row_scales.

    | strategy    | parts                                                       | limits                                |
    |-------------|-------------------------------------------------------------|---------------------------------------|
    | `min_error` | segments of values, least quantization error                |                                       |
    | `kmeans`    | segments of values, least sum of squares (the paper)        |                                       |
    | `magnitude` | segments of magnitudes                                      | always symmetric                      |
    | `residual`  | each part quantizes what the parts before it left           | always parallel, clusters * bits <= 8 |
    | `lloyd`     | `clusters * 2**bits` free levels, the least squared error   | fused, clusters * 2**bits <= 256      |

    Raises SpecError for a value outside its range. Source: SplitQuantV2, arXiv 2503.07657, section 3.
    """

    bits: int = 4
    clusters: int = 0
    strategy: Strategy = "min_error"
    granularity: GranularityField = GranularityField()  # noqa: RUF009 - it holds nothing
    symmetric: bool = False
    layout: Layout = "fused"
    polish: bool | None = None
    zero_points: ZeroPoints | None = None

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in WIDTHS:
            raise SpecError(f"bits is {self.bits!r}; expected {min(WIDTHS)} to {max(WIDTHS)}")
        if self.strategy not in STRATEGIES:
            raise SpecError(f"strategy is {self.strategy!r}; expected one of {', '.join(STRATEGIES)}")
        if self.layout not in LAYOUTS:
            raise SpecError(f"layout is {self.layout!r}; expected one of {', '.join(LAYOUTS)}")
        if not isinstance(self.symmetric, bool):
            raise SpecError(f"symmetric is {self.symmetric!r}; expected true or false")
        said: Any = self.granularity
        self._set("granularity", Granularity.parse(str(said) if isinstance(said, Granularity) else said))
        self._set("symmetric", self.symmetric or self.facts.symmetric)
        self._set("layout", self.facts.layout or self.layout)
        self._settle_clusters()
        if self.zero_points is not None and self.zero_points not in get_args(ZeroPoints):
            raise SpecError(f"zero_points is {self.zero_points!r}; expected one of {', '.join(get_args(ZeroPoints))}")
        if self.zero_points is None or not self.may_have_own_zero_points:
            self._set("zero_points", "own" if self.may_have_own_zero_points else "shared")
        if self.polish is None:
            self._set("polish", self.usually_polished)
        if self.facts.free_levels:
            self._set("polish", value=False)
        if not isinstance(self.polish, bool):
            raise SpecError(f"polish is {self.polish!r}; expected true or false")

    def _set(self, field: str, value: object) -> None:
        """Decide a field that was left open, or that the strategy decides; only while the spec is made."""
        object.__setattr__(self, field, value)

    def _settle_clusters(self) -> None:
        facts, most = self.facts, self.facts.most_clusters(self.bits)
        if type(self.clusters) is int and self.clusters == 0:
            self._set("clusters", min(facts.fused if self.layout == "fused" else facts.parallel, most))
        if type(self.clusters) is not int or self.clusters not in CLUSTER_ID_BITS:
            raise SpecError(f"clusters is {self.clusters!r}; expected 1 to {MAX_CLUSTERS}")
        if facts.free_levels and (self.layout == "parallel" or self.symmetric):
            raise SpecError(
                f"{self.strategy} with a parallel layout or symmetric grids; its levels are free: leave both out"
            )
        if self.clusters > most:
            raise SpecError(
                f"{self.strategy} with {self.clusters} clusters of {self.bits} bits; expected {facts.limit}"
            )

    @property
    def facts(self) -> Facts:
        """The facts of this spec's strategy."""
        return FACTS[self.strategy]

    @property
    def usually_polished(self) -> bool:
        """What `polish` is where nothing was said: the paper's clusters stay what they are elsewhere."""
        return self.facts.polished and (self.clusters > 1 or self.own_zero_points)

    @property
    def may_have_own_zero_points(self) -> bool:
        """Whether rows or groups could have zero_points of their own: asymmetric plain grids with row_scales."""
        plain = self.clusters == 1 and not self.facts.free_levels
        return plain and not self.symmetric and self.granularity.kind != "tensor"

    @property
    def own_zero_points(self) -> bool:
        """Whether every row or group has a zero_point of its own."""
        return self.zero_points == "own"

    @property
    def width(self) -> Width:
        """The facts of this spec's code width."""
        return WIDTHS[self.bits]

    @property
    def cluster_bits(self) -> int:
        """Bits of one stored cluster id: 0 for k = 1 and for residual parts, which all hold every weight, else ceil(log2 k)."""
        return 0 if self.facts.additive else CLUSTER_ID_BITS[self.clusters]

    @property
    def code_bits(self) -> int:
        """Bits of one entry of the codes plane: `bits`, and for residual the codes of all parts side by side."""
        return self.bits * self.clusters if self.facts.additive else self.bits

    @property
    def zero_in_grid(self) -> bool:
        """Whether zero is exactly a level of every grid: in the parallel layout, in symmetric grids, and in plain ones (k = 1)."""
        return not self.facts.free_levels and (self.layout == "parallel" or self.symmetric or self.clusters == 1)

    def group_size(self, cols: int) -> int:
        """How many neighbouring weights of a row share a row_scale (0: tensor granularity, no row_scale).

        Args:
            cols: weights of a row.
        """
        return self.granularity.group_size(cols)

    def groups(self, cols: int) -> int:
        """How many row_scales a row has (0: tensor granularity).

        Args:
            cols: weights of a row.
        """
        return self.granularity.groups(cols)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: every field, so that a stored spec never changes its meaning with a default."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**found, "granularity": str(self.granularity)}

    def to_stored(self) -> dict[str, Any]:
        """The JSON form in folders and reports: every field, but `zero_points` only where they are own.

        Exists because these files are older than own zero_points.
        """
        found = self.to_dict()
        if not self.own_zero_points:
            del found["zero_points"]
        return found

    @classmethod
    def from_stored(cls, data: Mapping[str, Any]) -> QuantSpec:
        """The inverse of `to_stored`.

        Args:
            data: the fields.

        Raises:
            SpecError: as `from_dict` does, and for own zero_points of a spec that cannot have them.
        """
        spec = cls.from_dict({"zero_points": "shared", **data})
        if data.get("zero_points", "shared") != spec.zero_points:
            raise SpecError(f"zero_points is {data['zero_points']!r}; those of {spec} are {spec.zero_points}")
        return spec

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantSpec:
        """Read the JSON form.

        Args:
            data: any of the fields.

        Raises:
            SpecError: for an unknown key, with its name, and for what makes no spec.
        """
        known = {field.name for field in fields(cls)}
        for key in data:
            if key not in known:
                raise SpecError(f"unknown key {key!r} in a quantization spec; known keys: {', '.join(sorted(known))}")
        return cls(**data)

    def __str__(self) -> str:
        plain = self.clusters == 1 and not self.facts.free_levels
        words = [f"INT{self.bits}", "plain" if plain else f"k={self.clusters} {self.strategy}", str(self.granularity)]
        words += ["symmetric"] if self.symmetric else []
        words += ["parallel"] if self.layout == "parallel" else []
        words += ["shared"] if self.may_have_own_zero_points and not self.own_zero_points else []
        words += [] if self.polish == self.usually_polished else ["polished" if self.polish else "unpolished"]
        return " ".join(words)


PAPER = QuantSpec(bits=4, clusters=3, strategy="kmeans", granularity="tensor", symmetric=False, layout="parallel")
"""SplitQuantV2 as published: k = 3, k-means, per tensor, zero in every part's range, INT4."""

EMBEDDING = QuantSpec(bits=8, clusters=1, granularity="channel", symmetric=True)
"""Token embeddings and output heads by default: plain INT8, one scale per row."""
