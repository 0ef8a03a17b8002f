"""The distributions of a float folder's tensors and of what a quantized folder made of them, read in windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.quantized import QuantizedFolder
from splitquant.checkpoint.source_rows import SourceRows
from splitquant.core.arrays import F32, U8
from splitquant.core.bars import NO_BARS, Bars
from splitquant.core.floats import to_float32
from splitquant.core.rows import spread
from splitquant.core.split import SplitTensor
from splitquant.errors import VerifyError
from splitquant.format.dtypes import DTYPE_OF_KIND, DTYPES
from splitquant.format.planes import geometry
from splitquant.report.distribution import Axis, Distribution, GridPicture, Segment
from splitquant.storage.memory import MemoryBudget

_AT_ONCE = 1 << 18  # weights: what is computed of them then stays in the cache
_BYTES_PER_WEIGHT = 64


def distributions(
    folder: Folder, quantized: QuantizedFolder, budget: MemoryBudget, advance: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[str, Distribution]]:
    """The distribution of every float tensor, in the order of the source.

    Args:
        folder: the source.
        quantized: what was made of it.
        budget: of memory and threads.
        advance: told source bytes that are done, from any thread.

    Raises:
        VerifyError: where the two are not of the same model. SourceError, SpecError: as the reading of windows does.
    """
    _refuse_strangers(folder, quantized)
    names = [
        entry.name for shard in folder.shards for entry in shard.entries if DTYPES[entry.dtype].kind and entry.nbytes
    ]

    def one(name: str) -> tuple[str, Distribution]:
        found = (
            _quantized(folder, quantized, name, budget)
            if name in quantized.tensors
            else kept_distribution(folder, name)
        )
        advance(folder.tensors[name].nbytes)
        return name, found

    with ThreadPoolExecutor(budget.threads) as pool:
        yield from pool.map(one, names)


def kept_distribution(folder: Folder, name: str) -> Distribution:
    """The distribution of one tensor that is stored as floats.

    Args:
        folder: where it is, a float folder or a quantized one.
        name: of the tensor.
    """
    entry = folder.tensors[name]
    weights = entry.nbytes * 8 // DTYPES[entry.dtype].bits
    if not weights:
        return Distribution(NO_BARS)
    rows = SourceRows(folder, name, geometry((weights, 1), 0), 0)
    bars = NO_BARS
    for first in range(0, weights, _AT_ONCE):
        bars = bars.merge(Bars.of(to_float32(rows.rows(first, min(weights, first + _AT_ONCE)))))
    return Distribution(bars, not_finite=weights - bars.total)


def quantized_distribution(
    folder: Folder | None, quantized: QuantizedFolder, name: str, budget: MemoryBudget
) -> Distribution:
    """The distribution of one quantized tensor and of its errors.

    Args:
        folder: the source; None: the values are those that the codes stand for, and there are no errors.
        quantized: what was made of it.
        name: of a quantized tensor.
        budget: of memory.

    Raises:
        VerifyError: where the two are not of the same model.
    """
    if folder is not None:
        _refuse_strangers(folder, quantized)
    return _quantized(folder, quantized, name, budget)


def _refuse_strangers(folder: Folder, quantized: QuantizedFolder) -> None:
    place = quantized.folder.path
    stored = {name: (DTYPE_OF_KIND[weight.kind].name, weight.shape) for name, weight in quantized.tensors.items()}
    held = {**stored, **{name: (entry.dtype, entry.shape) for name, entry in quantized.kept.items()}}
    for name in (*folder.tensors, *held):
        if name not in held or name not in folder.tensors:
            where = place if name not in held else folder.path
            raise VerifyError(
                f"{where}: tensor {name!r} of the other folder is missing; expected a float folder and what splitquant made of it"
            )
        if folder.tensors[name].shape != held[name][1]:
            raise VerifyError(
                f"{place}: tensor {name!r} has shape {held[name][1]}; that of {folder.path} has {folder.tensors[name].shape}: "
                "expected a float folder and what splitquant made of it"
            )


def _quantized(folder: Folder | None, quantized: QuantizedFolder, name: str, budget: MemoryBudget) -> Distribution:
    weight = quantized.tensors[name]
    g = weight.geometry
    what = f"{(folder or quantized.folder).path}: tensor {name!r}"
    values, errors, picture = NO_BARS, NO_BARS, None
    step = max(1, _AT_ONCE // g.cols)
    for index in range(g.count):
        source = None if folder is None else SourceRows(folder, name, g, index)
        grid = _GridSeen()
        for begin, end in budget.windows(what, g.rows, 8 * g.cols, can_be_cut=True):
            for first in range(begin, end, step):
                stored = quantized.rows(name, index, first, min(end, first + step))
                w_hat: F32 = stored.dequantize()
                w = w_hat if source is None else to_float32(source.rows(first, min(end, first + step)))
                values = values.merge(Bars.of(w))
                if source is not None:
                    errors = errors.merge(Bars.of(w_hat - w))
                if index == 0:
                    grid = grid.with_rows(stored, w)
        picture = grid.picture() if index == 0 else picture
    return Distribution(values, errors, picture, g.count)


@dataclass(frozen=True, slots=True)
class _GridSeen:
    """The grids of a matrix, and what was found of its values so far; found: the stretch of the values of each cluster."""

    stored: SplitTensor | None = None
    bars: Bars = NO_BARS
    found: tuple[Segment, ...] = ()

    def with_rows(self, stored: SplitTensor, w: F32) -> _GridSeen:
        """With some more rows.

        Args:
            stored: of the same matrix.
            w: the float weights of these rows.
        """
        x = _on_the_axis(stored, w)
        found = {one.cluster: one for one in self.found}
        if stored.clusters is not None:
            ids = stored.unpacked_clusters()
            for cluster in range(stored.spec.clusters):
                of_it = x[ids == cluster]
                if of_it.size:
                    low, high = float(of_it.min()), float(of_it.max())
                    known = found.get(cluster, Segment(low, high, cluster))
                    found[cluster] = Segment(min(known.low, low), max(known.high, high), cluster)
        return _GridSeen(stored, self.bars.merge(Bars.of(x)), tuple(found.values()))

    def picture(self) -> GridPicture | None:
        """What is to be drawn; clusters that overlap, since a value takes the nearest level of any, have no segments."""
        if self.stored is None:
            return None
        ordered = tuple(sorted(self.found, key=lambda one: (one.low, one.high)))
        apart = all(one.high <= two.low + _rounding(one.high) for one, two in pairwise(ordered))
        return GridPicture(_axis(self.stored), self.bars, _levels(self.stored), ordered if apart else ())


def _axis(stored: SplitTensor) -> Axis:
    if stored.zero is not None:
        return "code"
    return "value" if stored.row_scale is None else "scaled"


def _on_the_axis(stored: SplitTensor, w: F32) -> F32:
    """Where weights lie among the levels."""
    scales = stored.row_scales
    if scales is None:
        return w
    scaled: F32 = w * spread(scales.inverse, scales.group, stored.cols)
    if scales.zero is None:
        return scaled
    zero: U8 = spread(scales.zero, scales.group, stored.cols)
    return scaled * np.float32(2.0 ** (stored.spec.bits - 1)) + zero.astype(np.float32)


def _levels(stored: SplitTensor) -> tuple[tuple[float, ...], ...]:
    if stored.zero is not None:
        return (tuple(float(code) for code in range(2**stored.spec.bits)),)
    return tuple(tuple(sorted(map(float, row))) for row in stored.levels)


def _rounding(value: float) -> float:
    """What one multiplication in float32 may have moved a value by."""
    return 2.0**-23 * abs(value)
