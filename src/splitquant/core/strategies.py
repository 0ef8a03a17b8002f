"""The facts of every strategy, in one table; the mathematics of each is in `core.solve`.

A new strategy is a row here and a solver there: everything else in core asks the facts, never the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

Strategy = Literal["min_error", "kmeans", "magnitude", "residual", "lloyd"]
Layout = Literal["fused", "parallel"]

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MAX_CLUSTERS = 8
MAX_CODE_BITS = 8  # of one entry of the codes plane: the codes of all parts of an additive weight share one
MAX_FREE_LEVELS = 256


@dataclass(frozen=True, slots=True)
class Facts:
    """What follows from a strategy, whatever the weights are.

    Args:
        squares: clusters are cut where the sum of squares is least, as k-means does; else where the error of linear grids is.
        additive: every part holds every weight, and a weight is the sum of its parts. There are no borders and no cluster ids
            then, and grids follow from the range alone.
        free_levels: the levels of a codebook, stored as such, instead of those of a linear grid. There are no scales, no
            layers and no polish then.
        symmetric: grids are symmetric, whatever was asked for.
        layout: the only one, whatever was asked for (None: both).
        polished: whether the grids of several clusters are fitted to the values unless told otherwise.
        fused, parallel: the usual number of clusters per layout, where `most_clusters` allows it.
    """

    squares: bool = False
    additive: bool = False
    free_levels: bool = False
    symmetric: bool = False
    layout: Layout | None = None
    polished: bool = False
    fused: int = 4
    parallel: int = 3

    def most_clusters(self, bits: int) -> int:
        """The largest number of clusters.

        Args:
            bits: width of a code.
        """
        if self.additive:
            return MAX_CODE_BITS // bits
        return min(MAX_CLUSTERS, MAX_FREE_LEVELS >> bits) if self.free_levels else MAX_CLUSTERS

    @property
    def limit(self) -> str:
        """What `most_clusters` comes from, in words."""
        if self.additive:
            return f"clusters * bits of at most {MAX_CODE_BITS}"
        return f"clusters * 2**bits of at most {MAX_FREE_LEVELS}" if self.free_levels else f"at most {MAX_CLUSTERS}"


FACTS: Mapping[Strategy, Facts] = MappingProxyType(
    {
        "min_error": Facts(polished=True),
        "kmeans": Facts(squares=True),
        "magnitude": Facts(symmetric=True, polished=True),
        "residual": Facts(additive=True, layout="parallel", polished=True, parallel=2),
        "lloyd": Facts(squares=True, free_levels=True, parallel=4),
    }
)


def facts_of(name: object) -> Facts:
    """The facts of a strategy that somebody named; of a name that is none, which `QuantSpec` refuses, those of any.

    Args:
        name: what was said, perhaps nothing.
    """
    return FACTS[name] if name in STRATEGIES else Facts()
