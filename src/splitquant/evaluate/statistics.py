"""Figures with their standard errors, and the test for two models that answered the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitquant.core.arrays import F64

BLOCK = 64
BLOCKS_FROM = 1024


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error (NaN of a single value)."""

    value: float
    error: float

    def to_dict(self) -> dict[str, float | None]:
        """For a JSON report; what is not finite is null."""
        return {name: kept_finite(number) for name, number in (("value", self.value), ("error", self.error))}


def kept_finite(number: float) -> float | None:
    """A number for JSON, which has no NaN and no infinity."""
    return number if math.isfinite(number) else None


def mean(values: Sequence[float] | F64) -> Estimate:
    """The mean of independent values, with the sample's standard error of it."""
    array = np.asarray(values, np.float64)
    if array.size == 0:
        return Estimate(math.nan, math.nan)
    error = float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else math.nan
    return Estimate(float(array.mean()), error)


def mean_along_text(values: Sequence[float] | F64) -> Estimate:
    """The mean over positions of a text, which are no independent values: neighbours share what they speak of.

    From 1,024 positions on the error is that of the means of 64 neighbours; fewer positions are taken one by one.

    Args:
        values: one per position, in the order of the text.
    """
    array = np.asarray(values, np.float64)
    if array.size < BLOCKS_FROM:
        return mean(array)
    whole = array[: array.size // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1)
    return Estimate(float(array.mean()), mean(whole).error)


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p of McNemar's test: how often chance alone divides the changed answers so unevenly.

    Args:
        lost: questions that only the first model answered rightly.
        won: questions that only the second model answered rightly.

    Source: McNemar 1947, in its exact binomial form.
    """
    changed, tail, ways = lost + won, 0, 1
    for k in range(min(lost, won) + 1):
        tail += ways
        ways = ways * (changed - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << changed))
