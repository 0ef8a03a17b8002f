"""The pool of specs that a budget chooses from.

Which specs are in the pool is a matter of what can ever be worth its bytes (benchmarks/quality/k_per_layer.py): a cluster id takes
whole bits, so three clusters cost what four do; more than 8 stored bits per weight buy nothing that anybody needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from splitquant.core.spec import WIDTHS, QuantSpec
from splitquant.core.strategies import FACTS, STRATEGIES, facts_of
from splitquant.errors import SpecError
from splitquant.plan.explicit import explicit_spec, holds
from splitquant.plan.targets import Target

_GRANULARITIES = ("channel", "group:128", "group:64", "group:32")
_BITS = tuple(WIDTHS)
_MOST_STORED_BITS = 8  # of code and cluster id
_AXES = ("bits", "clusters", "strategy", "granularity", "layout", "symmetric", "polish", "zero_points")


def candidates(fixed: Mapping[str, Any]) -> tuple[QuantSpec, ...]:
    """The pool for linear, convolution and expert weights.

    fixed: fields of `QuantSpec` that are decided (a tuple of values leaves a choice among them); all others vary. A
    `strategy` is about split tensors: plain ones stay in the pool beside it, unless `clusters` says otherwise.
    Raises SpecError where nothing is left.
    """
    unknown = sorted(set(fixed) - set(_AXES))
    if unknown:
        raise SpecError(f"unknown key {unknown[0]!r} among the fixed options; known keys: {', '.join(_AXES)}")
    fixed = {name: value for name, value in fixed.items() if value is not None}
    for strategy in _values(fixed.get("strategy", "min_error")):
        if strategy not in STRATEGIES:
            raise SpecError(f"strategy is {strategy!r}; expected one of {', '.join(STRATEGIES)}")
    narrowed = {name: _values(value) for name, value in fixed.items() if name != "strategy"}
    free = _free(fixed.get("strategy"), narrowed)
    pool = _members(_PLAIN, narrowed)
    if not free:
        pool += _members(_FITTED, narrowed)
    for strategy in _values(fixed.get("strategy", "min_error")):
        if FACTS[strategy].free_levels:
            continue
        parallel = FACTS[strategy].layout == "parallel" or narrowed.get("layout") == ("parallel",)
        for split in _PARALLEL if parallel else _FUSED:
            pool += _members({**split, "strategy": (strategy,)}, narrowed)
    if not {"bits", "clusters"} & set(fixed):
        least = max((_stored_bits(spec) for spec in free), default=0) if "strategy" not in fixed else 0
        pool = [s for s in pool if s.clusters == 1 or least < _stored_bits(s) <= _MOST_STORED_BITS]
    pool += free
    if not pool or (narrowed.get("clusters") != (1,) and not _has_strategy(pool, fixed.get("strategy"))):
        explicit_spec(
            {name: value for name, value in fixed.items() if not isinstance(value, tuple)}
        )  # may say what clashes
        said = ", ".join(f"{name} {value}" for name, value in fixed.items())
        raise SpecError(f"there is no spec with {said} to choose from; leave one of them out")
    return tuple(dict.fromkeys(pool))


def embedding_candidates(fixed: Mapping[str, Any]) -> tuple[QuantSpec, ...]:
    """The pool for token embeddings and output heads: plain grids, which every gather can read.

    Of what is fixed for weights only `symmetric`, `polish` and `zero_points` count.
    """
    narrowed = {
        name: _values(fixed[name]) for name in ("symmetric", "polish", "zero_points") if fixed.get(name) is not None
    }
    return (*_members(_PLAIN, narrowed), *_members(_FITTED, narrowed))


def allowed_by(target: Target) -> dict[str, Any]:
    """What a target decides, in the form of `fixed`; its other limits are for `runs_on`."""
    if target.codebook:
        return {"strategy": ("lloyd", "min_error")}
    return {
        "strategy": ("min_error", "magnitude", "residual"),
        "layout": "parallel",
        **({"symmetric": True} if target.symmetric else {}),
    }


def runs_on(target: Target, spec: QuantSpec) -> bool:
    """Whether a target can run what a spec makes."""
    try:
        target.refuse(spec)
    except SpecError:
        return False
    return True


_Family = Mapping[str, tuple[Any, ...]]
_PLAIN: _Family = {"bits": _BITS, "clusters": (1,), "granularity": _GRANULARITIES}
_FITTED: _Family = {**_PLAIN, "bits": (2, 3, 4, 5), "polish": (True,)}  # clipping helps where levels are few
# Free levels: with more than 64 a linear grid is as good, and with fewer nothing of their size is better.
_FREE: _Family = {**_PLAIN, "bits": (2, 3, 4, 5, 6), "strategy": ("lloyd",)}
_FUSED: tuple[_Family, ...] = (
    {"bits": _BITS, "clusters": (2, 4, 8), "granularity": ("channel",)},
    {"bits": _BITS, "clusters": (4,), "granularity": ("group:128",)},
)
_PARALLEL: tuple[_Family, ...] = (  # each cluster is a layer of its own to run
    {"bits": _BITS, "clusters": (2, 3, 4), "granularity": ("channel",)},
    {"bits": _BITS, "clusters": (2,), "granularity": ("group:128",)},
)


def _values(explicit: Any) -> tuple[Any, ...]:
    return explicit if isinstance(explicit, tuple) else (explicit,)


def _has_strategy(pool: Sequence[QuantSpec], strategy: Any) -> bool:
    """Whether the explicit strategy is in the pool at all."""
    return not isinstance(strategy, str) or any(spec.strategy == strategy for spec in pool)


def _free(strategy: Any, narrowed: _Family) -> list[QuantSpec]:
    """The specs of free levels that the fixed fields leave.

    In clusters only where strategy and clusters are both explicit: they merely cut one row of levels into several.
    """
    if facts_of(strategy).free_levels and "clusters" in narrowed:
        return _members({**_FREE, "clusters": narrowed["clusters"]}, narrowed)
    return (
        _members(_FREE, narrowed)
        if strategy is None or any(facts_of(name).free_levels for name in _values(strategy))
        else []
    )


def _stored_bits(spec: QuantSpec) -> int:
    return spec.code_bits + spec.cluster_bits


def _members(family: _Family, narrowed: _Family) -> list[QuantSpec]:
    """The possible specs of a family, each axis narrowed to its explicit values, or replaced where they have nothing in common."""
    if family["clusters"] == (1,) and 1 not in narrowed.get("clusters", (1,)):
        return []
    axes = {**family, **{name: _common(family.get(name, values), values) for name, values in narrowed.items()}}
    found = []
    for values in product(*axes.values()):
        try:
            spec = QuantSpec(**dict(zip(axes, values, strict=True)))
        except SpecError:  # these do not go together
            continue
        if all(holds(spec, name, explicit) for name, explicit in narrowed.items()):
            found.append(spec)
    return found


def _common(usual: tuple[Any, ...], explicit: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value for value in usual if value in explicit) or explicit
