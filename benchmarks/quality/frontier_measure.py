"""Measure every scheme on one model: stored bits, SQNR of the weights, and for the best of each family the model's score."""

from __future__ import annotations

import copy
import math
import threading
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import torch

from benchmarks.quality.frontier_models import Subject
from benchmarks.quality.frontier_schemes import Scheme, planned, separate_layers, stored_bits

BUDGETS = (2.25, 2.75, 3.25, 3.75, 4.25, 4.75, 5.25, 6.25, 7.25, 8.25)
JUDGED = (2.25, 3.25, 4.25, 4.75, 6.25)


@dataclass(frozen=True)
class Point:
    """What a scheme costs and keeps: stored bits per quantized weight, SQNR of the weights, and the model's score if taken."""

    scheme: Scheme
    bits: float
    sqnr_db: float
    score: float | None = None


@dataclass(frozen=True)
class Results:
    """Everything measured on one model: all schemes by their stored bits, and those of separate layers."""

    subject: Subject
    stored: tuple[Point, ...]
    layers: tuple[Point, ...]

    def best(self, budget: float, *, kind: str = "", family: str = "") -> Point | None:
        """The highest SQNR of a kind or family that stores at most `budget` bits, of equal ones the smallest."""
        mine = (p for p in self.stored if kind in ("", p.scheme.kind) and family in ("", p.scheme.family))
        return max((p for p in mine if p.bits <= budget), key=lambda p: (p.sqnr_db, -p.bits), default=None)

    @property
    def families(self) -> list[str]:
        """All families of the stored schemes, in their order."""
        return list(dict.fromkeys(point.scheme.family for point in self.stored))


def measured(subject: Subject, scheme: Scheme) -> Point:
    """Size and SQNR of a scheme, over all quantized weights of a model."""
    bits, weights, signal, noise = 0, 0, 0.0, 0.0
    for name, weight in subject.weights.items():
        stored = scheme.quantize(name, weight)
        bits, weights = bits + stored.bits, weights + weight.numel()
        signal += float(weight.double().square().sum())
        noise += float((weight.double() - stored.values).square().sum())
    return Point(scheme, bits / weights, 10 * math.log10(signal / noise) if noise else math.inf)


class Judge:
    """Scores quantized models, each thread on a copy of its own."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.own = threading.local()

    def __call__(self, point: Point) -> Point:
        if not hasattr(self.own, "model"):
            self.own.model = copy.deepcopy(self.subject.model)
        with torch.no_grad():
            for name, weight in self.subject.weights.items():
                self.own.model.get_submodule(name).weight.copy_(point.scheme.quantize(name, weight).values)
        return replace(point, score=self.subject.score(self.own.model))


def run(subject: Subject, pool: Executor) -> Results:
    """All schemes measured on one model; the best of each family at the sizes `JUDGED` are scored too."""
    schemes = [*stored_bits(), *planned(subject.weights, BUDGETS)]
    stored = list(pool.map(lambda scheme: measured(subject, scheme), schemes))
    layers = list(pool.map(lambda scheme: measured(subject, scheme), separate_layers()))
    found = Results(subject, tuple(stored), ())
    chosen = {found.best(budget, family=family) for budget in JUDGED for family in found.families}
    at = [index for index, point in enumerate(stored) if point in chosen]
    scores = list(pool.map(Judge(subject), [*(stored[index] for index in at), *layers]))
    for index, point in zip(at, scores, strict=False):
        stored[index] = point
    return Results(subject, tuple(stored), tuple(scores[len(at) :]))
