"""A budget of bytes over many tensors: for each the candidate with which the total error is least.

The algorithm is one sentence: begin with the smallest candidate of every tensor, and as long as one fits, make that change of
one tensor that saves most noise per byte. While nothing is refused for its size these changes run along the convex hulls
in order of slope, which is the Lagrangian optimum; near the budget, what does not fit is passed over.

LAWS (tests/properties/test_budget_laws.py holds them against every possible choice)
- never over the budget;
- afterwards no change of a single tensor that lowers the noise fits into the budget;
- the noise is the least possible for the bytes of every hull point, and at most that of the last hull point within the budget;
- a larger budget never gives more noise. (Where two budgets part, the larger one takes a change with slope s and size d that the
  smaller one has no room for; all that the smaller one can still save is at most s * room < s * d.)
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import accumulate

from splitquant.plan.frontier import Curve, Move


def least_bytes(curves: Sequence[Curve]) -> int:
    """The smallest budget that can be met."""
    return sum(curve.points[0].nbytes for curve in curves)


def hull_budgets(curves: Sequence[Curve]) -> list[int]:
    """The budgets, ascending from the least one, for which `allocate` stays on all hulls and leaves nothing."""
    moves: list[tuple[float, int, int]] = []
    for tensor, curve in enumerate(curves):
        move = curve.next_on_hull(0)
        while move is not None:
            moves.append((-move.slope, tensor, move.nbytes))
            move = curve.next_on_hull(move.to)
    return list(accumulate((nbytes for _, _, nbytes in sorted(moves)), initial=least_bytes(curves)))


def allocate(curves: Sequence[Curve], budget: int) -> list[int]:
    """For every tensor the index of its point, in all at most `budget` bytes, which must be at least `least_bytes`."""
    room = budget - least_bytes(curves)
    assert room >= 0
    at = [0] * len(curves)
    heap: list[tuple[float, int, Move]] = []

    def offer(tensor: int, move: Move | None) -> None:
        if move is not None:
            heapq.heappush(heap, (-move.slope, tensor, move))

    for tensor, curve in enumerate(curves):
        offer(tensor, curve.next_on_hull(0))
    left_hull = [False] * len(curves)
    while heap:
        _, tensor, move = heapq.heappop(heap)
        curve = curves[tensor]
        if move.nbytes > room:
            left_hull[tensor] = True  # room only shrinks: from now on it takes what fits
        else:
            at[tensor], room = move.to, room - move.nbytes
        offer(tensor, curve.best_move(at[tensor], room) if left_hull[tensor] else curve.next_on_hull(at[tensor]))
    return at
