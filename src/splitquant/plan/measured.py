"""What every candidate would do to one layer: the figures that a planner chooses by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum

from splitquant.core.arrays import Matrix
from splitquant.core.error import NO_ERROR, ErrorFigures, figures_of
from splitquant.core.interface import Memory, new_memory
from splitquant.core.passes import Sink, Windows, encoded, held, solved
from splitquant.core.scaling import Scaling
from splitquant.core.spec import QuantSpec
from splitquant.plan.layers import Layer


@dataclass(frozen=True, slots=True)
class Measured:
    """The error of one layer by every candidate.

    Args:
        layer: what was measured.
        specs: the candidates; None keeps the layer.
        noise: the sum of squared errors by each of them.
        signal: the sum of its squared weights.
        exact: whether all weights were measured; else a sample was, and the figures are scaled up.
    """

    layer: Layer
    specs: tuple[QuantSpec | None, ...]
    noise: tuple[float, ...]
    signal: float
    exact: bool = True


def measured_by(
    layer: Layer, pool: Sequence[QuantSpec | None], matrices: Iterable[Matrix], scratch: Memory = new_memory
) -> Measured:
    """What a layer loses by every candidate, found by quantizing and throwing away.

    Args:
        layer: the layer.
        pool: the candidates.
        matrices: its rows that are measured, see `plan.sample`, matrix by matrix.
        scratch: gives memory for planes, by a name and a number of bytes.

    Raises:
        TensorError: for NaN and infinity.
    """
    figures = [NO_ERROR] * len(pool)
    weights = 0
    signals = []
    for x in matrices:
        signal, found = _errors(x, pool, scratch)
        signals.append(signal)
        figures = [sums if new is None else sums.merge(new) for sums, new in zip(figures, found, strict=True)]
        weights += x.size
    factor = layer.weights / weights
    exact = weights == layer.weights
    return Measured(
        layer=layer,
        specs=tuple(pool),
        noise=tuple(figure.noise if exact else figure.noise * factor for figure in figures),
        signal=fsum(signals) * (1.0 if exact else factor),
        exact=exact,
    )


def _errors(x: Matrix, pool: Sequence[QuantSpec | None], scratch: Memory) -> tuple[float, list[ErrorFigures | None]]:
    """The signal of a matrix, and its figures by every spec of the pool (None for None)."""
    found: list[ErrorFigures | None] = [None] * len(pool)
    sink = Sink(lambda _, blocks: next(blocks).errors, scratch)
    signal = 0.0
    for scaling in dict.fromkeys(Scaling.of(spec) for spec in pool if spec is not None):
        matrix = held(Windows.whole(x), scaling)
        specs = {n: spec for n, spec in enumerate(pool) if spec is not None and Scaling.of(spec) == scaling}
        for (number, spec), grid in zip(specs.items(), solved(matrix, [*specs.values()]), strict=True):
            found[number] = figures = figures_of(x.size, encoded(matrix, spec, grid, sink))
            signal = figures.signal
    return signal, found
