"""How near the outputs of two models are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitquant.errors import VerifyError
from splitquant.onnx.feeds import Feeds
from splitquant.onnx.runtime import run


@dataclass(frozen=True, slots=True)
class OutputMatch:
    """How near one output of both models is, over all runs.

    Args:
        name: of the output.
        sqnr_db: in dB.
        cosine: similarity.
        max_error: the largest difference.
        explained_db: the SQNR that the source has once its weights are the decoded ones, and nothing else is changed;
            None where that is not known.
    """

    name: str
    sqnr_db: float
    cosine: float
    max_error: float
    explained_db: float | None = None


def compared(  # noqa: C901 - a flat list of checks, each with its reason, reads best in one piece
    before: Any, after: Any, sets: list[Feeds], label: str
) -> tuple[OutputMatch, ...]:
    """How near all outputs are, over all sets of inputs; VerifyError for other names, shapes or text, and for new NaN."""
    names = [output.name for output in before.get_outputs()]
    found = [output.name for output in after.get_outputs()]
    if names != found:
        raise VerifyError(f"{label}: has the outputs {found}; the source has {names}")
    sums = {name: np.zeros(4) for name in names}
    worst = dict.fromkeys(names, 0.0)
    finite, texts, found_numbers = dict.fromkeys(names, 0), set[str](), set[str]()
    for feeds in sets:
        for name, wanted, got in _arrays_of(names, run(before, feeds), run(after, feeds), label):
            if wanted.shape != got.shape:
                raise VerifyError(f"{label}: output {name!r} has the shape {got.shape}; the source has {wanted.shape}")
            if wanted.dtype.kind in "OSUT":  # text
                if not np.array_equal(wanted, got):
                    raise VerifyError(f"{label}: output {name!r} holds other text than the source")
                if wanted.size:
                    texts.add(name)
                continue
            x, y = wanted.astype(np.float64).ravel(), got.astype(np.float64).ravel()
            usable = np.isfinite(x)
            if not np.isfinite(y[usable]).all():
                raise VerifyError(f"{label}: output {name!r} holds NaN or infinity where the source does not")
            if len(x):
                found_numbers.add(name)
            x, y = x[usable], y[usable]
            finite[name] += len(x)
            sums[name] += (x @ x, y @ y, x @ y, (x - y) @ (x - y))
            worst[name] = max(worst[name], float(np.abs(x - y).max(initial=0.0)))
    for name in names:
        if not finite[name] and name not in texts:
            what = "holds NaN or infinity only" if name in found_numbers else "is empty"
            raise VerifyError(
                f"{label}: output {name!r} {what}, in the source too, so that nothing can be compared: "
                "give real inputs (--inputs FILE.npz)"
            )
    return tuple(_match(name, sums[name], worst[name]) for name in names)


def _arrays_of(
    names: Sequence[str], wanted: Sequence[Any], got: Sequence[Any], label: str
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """The arrays of each output of both models, pair by pair; those of a sequence or a map one after the other."""
    for name, ours, theirs in zip(names, wanted, got, strict=True):
        before, after = _flat(ours), _flat(theirs)
        if len(before) != len(after):
            raise VerifyError(f"{label}: output {name!r} has {len(after)} elements; the source has {len(before)}")
        for x, y in zip(before, after, strict=True):
            yield name, x, y


def _flat(output: Any) -> list[NDArray[Any]]:
    if output is None:
        return []
    if isinstance(output, Mapping):
        return [array for entry in output.items() for part in entry for array in _flat(part)]
    if isinstance(output, list | tuple):
        return [array for part in output for array in _flat(part)]
    return [np.asarray(output)]


def _match(name: str, sums: NDArray[np.float64], worst: float) -> OutputMatch:
    xx, yy, xy, noise = sums.tolist()
    sqnr = math.inf if noise == 0.0 else 10 * math.log10(xx / noise) if xx > 0.0 else -math.inf
    cosine = 1.0 if noise == 0.0 else xy / math.sqrt(xx * yy) if xx > 0.0 and yy > 0.0 else 0.0
    return OutputMatch(name, sqnr, cosine, worst)
