"""The size/error curve of one tensor: which of its candidates are worth anything, and how much error a byte saves.

A point is one way to store a tensor. Points that another one beats in both respects are never chosen; of the rest, those on
the lower convex hull are what a Lagrangian (least noise + price * bytes, for some price of a byte) can choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One way to store a tensor: how many bytes it takes, and its (weighted) noise."""

    nbytes: int
    noise: float


@dataclass(frozen=True, slots=True)
class Move:
    """From one point of a tensor to a larger and better one: the bytes it costs, the noise it saves."""

    to: int
    nbytes: int
    gain: float

    @property
    def slope(self) -> float:
        """Noise saved per byte."""
        return self.gain / self.nbytes


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of a tensor that no other one beats: bytes rise, noise falls, both strictly.

    points: those; source: the index of each among the given ones; hull: which of them are on the lower convex hull.
    """

    points: tuple[Point, ...]
    source: tuple[int, ...]
    hull: tuple[int, ...]

    def next_on_hull(self, at: int) -> Move | None:
        """The steepest move from a hull point: to the next one."""
        later = self.hull.index(at) + 1
        return None if later == len(self.hull) else self._move(at, self.hull[later])

    def best_move(self, at: int, room: int) -> Move | None:
        """The steepest move from any point that takes at most `room` bytes; the smaller one of equals."""
        best = None
        for to in range(at + 1, len(self.points)):
            if self.points[to].nbytes - self.points[at].nbytes > room:
                break
            move = self._move(at, to)
            if best is None or move.slope > best.slope:
                best = move
        return best

    def _move(self, at: int, to: int) -> Move:
        here, there = self.points[at], self.points[to]
        return Move(to, there.nbytes - here.nbytes, here.noise - there.noise)


def curve_of(points: Sequence[Point]) -> Curve:
    """The curve of a tensor's candidates (at least one); of equal points the first one counts."""
    order = sorted(range(len(points)), key=lambda i: (points[i].nbytes, points[i].noise, i))
    kept: list[int] = []
    for i in order:
        if not kept or points[i].noise < points[kept[-1]].noise:
            kept.append(i)
    chosen = tuple(points[i] for i in kept)
    return Curve(chosen, tuple(kept), _lower_hull(chosen))


def _lower_hull(points: Sequence[Point]) -> tuple[int, ...]:
    """Andrew's monotone chain over points that are sorted by bytes."""
    hull: list[int] = []
    for i, new in enumerate(points):
        while len(hull) > 1 and not _turns_up(points[hull[-2]], points[hull[-1]], new):
            hull.pop()
        hull.append(i)
    return tuple(hull)


def _turns_up(a: Point, b: Point, c: Point) -> bool:
    """Whether the slope after b is flatter than the slope before it."""
    return (a.noise - b.noise) * (c.nbytes - b.nbytes) > (b.noise - c.noise) * (b.nbytes - a.nbytes)
