"""All ways to quantize that the frontier is drawn of: plain, NF4, HQQ, and every strategy of this project."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.quality.frontier_peers import Stored, hqq, nf4, plain
from splitquant import QuantSpec
from splitquant.core.error import ErrorFigures
from splitquant.core.spec import WIDTHS
from splitquant.core.split import quantize_array
from splitquant.core.strategies import FACTS
from splitquant.plan.budget import allocate, least_bytes
from splitquant.plan.candidates import candidates
from splitquant.plan.frontier import Point, curve_of

GROUPS = (32, 64, 128)
SPLITS = (2, 4, 8)  # 3 clusters take as many bits for their ids as 4; 5 to 7 as many as 8
LARGEST = 8  # bits of a weight, before scales

PLAIN = "plain linear"
PEERS = "NF4, HQQ"
SPLIT = "split"
FREE = "free levels"
PLANNED = "planner"
WEIGHTINGS = ("energy", "relative")


@dataclass(frozen=True)
class Scheme:
    """One way to quantize the tensor of a name.

    kind: PLAIN, PEERS, SPLIT, FREE or PLANNED; family: whose line in the picture it is a point of; spec: where one says it all.
    """

    kind: str
    family: str
    name: str
    quantize: Callable[[str, torch.Tensor], Stored]
    spec: QuantSpec | None = None


def scheme(kind: str, family: str, name: str, way: Callable[[torch.Tensor], Stored]) -> Scheme:
    """A scheme that treats all tensors alike."""
    return Scheme(kind, family, name, lambda _, weight: way(weight))


def ours(weight: torch.Tensor, spec: QuantSpec) -> Stored:
    """What splitquant makes of a tensor; its bits are those of everything stored, rows padded to bytes and all."""
    tensor = quantize_array(weight.numpy(), spec)
    return Stored(torch.from_numpy(tensor.dequantize()), round(tensor.bits_per_weight * weight.numel()))


def as_layers(weight: torch.Tensor, spec: QuantSpec) -> Stored:
    """The same tensor as k plain layers of `bits` bits, a float32 scale each: what a runtime without kernels of ours holds."""
    values = ours(weight, spec).values
    return Stored(values, spec.clusters * (spec.bits * weight.numel() + 32))


def of_specs(
    kind: str, family: str, specs: Iterable[QuantSpec], way: Callable[[torch.Tensor, QuantSpec], Stored] = ours
) -> list[Scheme]:
    """Schemes of this project."""
    return [Scheme(kind, family, str(spec), lambda _, w, spec=spec: way(w, spec), spec) for spec in specs]


def splits(family: str, specs: Iterable[QuantSpec], kind: str = SPLIT) -> list[Scheme]:
    """Those of the specs that store at most `LARGEST` bits for a weight."""
    return of_specs(kind, family, (spec for spec in specs if spec.code_bits + spec.cluster_bits <= LARGEST))


def possible(
    strategy: str, granularities: tuple[str, ...], clusters: Iterable[int], **fields: object
) -> Iterator[QuantSpec]:
    """The specs of a strategy at all widths; those that it cannot have are left out."""
    for granularity in granularities:
        for bits in WIDTHS:
            for k in clusters:
                if k <= FACTS[strategy].most_clusters(bits):
                    yield QuantSpec(bits, k, strategy, granularity, **fields)


def stored_bits() -> list[Scheme]:
    """The contest of stored bits: every scheme in the form that takes least."""
    every = ("tensor", "channel", *(f"group:{group}" for group in GROUPS))
    out = []
    for form in ("symmetric", "min-max", "clipped"):
        for granularity in every:
            for bits in WIDTHS:
                family = "plain, " + (f"groups, {form}" if granularity.startswith("group") else f"per {granularity}")
                name = f"INT{bits} plain {granularity} {form}"
                way = partial(plain, bits=bits, granularity=granularity, form=form)
                out.append(scheme(PLAIN, family, name, way))
    out += [
        scheme(PEERS, "NF4", "NF4 block 64", partial(nf4, double=False)),
        scheme(PEERS, "NF4", "NF4 block 64, double quantization", partial(nf4, double=True)),
    ]
    out += [
        scheme(PEERS, "HQQ", f"HQQ {bits} bits group:{group}", partial(hqq, bits=bits, group=group))
        for bits in (2, 3, 4, 8)
        for group in GROUPS
    ]
    two, groups = every[:2], every[2:]
    out += splits("plain, fitted", possible("min_error", every[1:], (1,), polish=True), PLAIN)
    out += splits("kmeans (the paper)", possible("kmeans", two, (2, 3, 4, 8)))
    out += splits("min_error, no polish", possible("min_error", two, SPLITS, polish=False))
    out += splits("min_error", possible("min_error", two, SPLITS))
    out += splits("min_error, groups", possible("min_error", groups, (2, 4, 8)))
    out += splits("magnitude", possible("magnitude", two, SPLITS))
    out += splits("residual", possible("residual", two, (2, 3, 4)))
    out += splits("lloyd", possible("lloyd", two, (1,)), FREE)
    out += splits("lloyd, groups", possible("lloyd", groups, (1,)), FREE)
    return out


def separate_layers() -> list[Scheme]:
    """For targets that have one linear grid per tensor and nothing else: k layers of INT4, and plain INT8."""
    form = {"bits": 4, "granularity": "tensor", "layout": "parallel"}
    lines: list[tuple[str, dict[str, object], tuple[int, ...]]] = [
        ("plain INT8", {"bits": 8}, (1,)),
        ("plain INT8, symmetric", {"bits": 8, "symmetric": True}, (1,)),
        ("plain", {}, (1,)),
        ("kmeans (the paper)", {"strategy": "kmeans"}, (2, 3, 4)),
        ("min_error", {}, (2, 3, 4)),
        ("residual", {"strategy": "residual"}, (2,)),
        ("plain, symmetric", {"symmetric": True}, (1,)),
        ("kmeans (the paper), symmetric", {"strategy": "kmeans", "symmetric": True}, (3,)),
        ("magnitude, symmetric", {"strategy": "magnitude"}, (2, 3, 4)),
        ("residual, symmetric", {"strategy": "residual", "symmetric": True}, (2,)),
    ]
    return [
        made
        for family, fields, clusters in lines
        for made in of_specs(
            PLAIN if clusters == (1,) else SPLIT,
            family,
            [QuantSpec(**{**form, **fields, "clusters": k}) for k in clusters],
            as_layers,
        )
    ]


def planned(weights: Mapping[str, torch.Tensor], budgets: Iterable[float]) -> list[Scheme]:
    """The planner's choice for each budget of bits per weight: for every tensor the spec with which the total error is least.

    Once with the energy of all errors for the total, once with the error of each tensor over its signal.
    """
    pool, names = candidates({}), list(weights)
    made = [[measured(weight, spec) for spec in pool] for weight in weights.values()]
    total = sum(weight.numel() for weight in weights.values())
    out = []
    for weighting in WEIGHTINGS:
        counts = [1.0 if weighting == "energy" else 1.0 / signal for signal in (row[0][1].signal for row in made)]
        curves = [
            curve_of([Point(nbytes, count * figures.noise) for nbytes, figures in row])
            for row, count in zip(made, counts, strict=True)
        ]
        for nbytes in (int(budget * total / 8) for budget in budgets):
            if nbytes < least_bytes(curves):
                continue
            at = allocate(curves, nbytes)
            chosen = {name: pool[curve.source[i]] for name, curve, i in zip(names, curves, at, strict=True)}
            family, name = f"planner, {weighting}", f"{len(set(chosen.values()))} specs"
            out.append(Scheme(PLANNED, family, name, lambda layer, w, chosen=chosen: ours(w, chosen[layer])))
    return out


def measured(weight: torch.Tensor, spec: QuantSpec) -> tuple[int, ErrorFigures]:
    """Bytes and error of one tensor by one spec."""
    tensor = quantize_array(weight.numpy(), spec)
    assert tensor.figures is not None
    return round(tensor.bits_per_weight * weight.numel() / 8), tensor.figures
