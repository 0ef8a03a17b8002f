"""What the noise of each tensor counts in a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitquant.errors import SpecError
from splitquant.plan.measured import Measured
from splitquant.plan.recipe import first_match

Weighting = str | Mapping[str, float]
"""`energy`, `relative`, or a number by tensor name or glob pattern."""
_LEAST, _MOST = 1e-30, 1e30  # products with the noise of any weights are far from the ends of a float


def importances(measured: Sequence[Measured], weighting: Weighting) -> list[float]:
    """What the noise of each layer counts: `energy` 1, `relative` 1 / its signal, or a number by name or glob pattern.

    LAW: a common factor of the numbers changes nothing; they are given over the largest of them.
    """
    if weighting == "energy":
        return [1.0] * len(measured)
    if weighting == "relative":
        return [1.0 / one.signal if one.signal > 0.0 else 0.0 for one in measured]
    if not isinstance(weighting, Mapping):
        raise SpecError(
            f"weighting is {weighting!r}; expected 'energy', 'relative' or a file of numbers by tensor name"
        )
    return _numbers([one.layer.names for one in measured], weighting)


def _numbers(names: Sequence[tuple[str, ...]], numbers: Mapping[str, float]) -> list[float]:
    known = frozenset(name for each in names for name in each)
    for pattern, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not _is_in_bounds(number):
            shown = "out of bounds" if isinstance(number, int) and abs(number) > _MOST else repr(number)
            raise SpecError(
                f"the weighting of {pattern!r} is {shown}; expected 0, or a number from {_LEAST:g} to {_MOST:g}"
            )
        if all(first_match(each, (pattern,), known) is None for each in names):
            raise SpecError(
                f"the weighting names {pattern!r}, which is none of the {len(names)} tensors to choose for; "
                "a report and --dry-run -v list their names"
            )
    matches = (first_match(each, numbers, known) for each in names)
    found = [1.0 if match is None else float(numbers[match]) for match in matches]
    largest = max(found, default=0.0) or 1.0
    return [number / largest for number in found]


def _is_in_bounds(number: float) -> bool:
    return number == 0 or _LEAST <= number <= _MOST
