"""A quantized folder back to plain floats, for tools that read nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from splitquant.checkpoint.folder import Folder, Shard
from splitquant.checkpoint.quantized import QuantizedFolder
from splitquant.checkpoint.safetensors import Entry, build_header
from splitquant.core.rows import from_matrix
from splitquant.format.dtypes import DTYPE_OF_KIND
from splitquant.format.planes import plane_key
from splitquant.report.card import CARD_NAME, source_card
from splitquant.report.outcome import REPORT_NAME
from splitquant.storage.files import TargetFile
from splitquant.storage.memory import MIB, MemoryBudget
from splitquant.storage.workplace import Workplace, check_destination, check_room, fingerprint_of
from splitquant.version import __version__

READ_BYTES = 8 * MIB


def dequantize_folder(
    quantized: QuantizedFolder,
    destination: Path,
    budget: MemoryBudget,
    *,
    force: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the float folder that a quantized one stands for, in the dtypes of the original; returns its tensor bytes.

    Every weight is `row_scale * levels[cluster, code]` rounded to its dtype; kept tensors are copied byte for byte.
    Raises SourceError and DestinationError.
    """
    source = quantized.folder.path
    budget = replace(budget, tensors=len(quantized.tensors) + len(quantized.kept))
    check_destination(source, destination, force=force)
    outputs = {shard.name: _outputs(quantized, shard) for shard in quantized.folder.shards}
    headers = {name: build_header(items, _metadata(quantized.folder, name)) for name, items in outputs.items()}
    total = sum(entry.nbytes for _, entries in headers.values() for entry in entries)
    check_room(destination, total + 64 * MIB)
    fingerprint = repr([__version__, *(fingerprint_of(source / shard.name) for shard in quantized.folder.shards)])
    with Workplace(destination, fingerprint) as workplace:
        for name, (header, entries) in headers.items():
            if workplace.finished(name) is not None:
                advance(sum(entry.nbytes for entry in entries))
                continue
            size = len(header) + sum(entry.nbytes for entry in entries)
            with TargetFile(workplace.growing(name), size) as target:
                target.write(header, 0)
                for entry in entries:
                    _restore(quantized, entry, target, budget, advance)
            workplace.finish(name, [])
        _write_small_files(quantized.folder, headers, total, workplace)
        workplace.publish()
    return total


def _outputs(quantized: QuantizedFolder, shard: Shard) -> list[tuple[str, str, tuple[int, ...]]]:
    """What a shard of the float folder holds: the kept tensors of the quantized one, and a tensor for every codes plane."""
    names = {entry.name for entry in shard.entries}
    kept = [(entry.name, entry.dtype, entry.shape) for name, entry in quantized.kept.items() if name in names]
    stored = [
        (name, DTYPE_OF_KIND[weight.kind].name, weight.shape)
        for name, weight in quantized.tensors.items()
        if plane_key(name, "codes") in names
    ]
    return kept + stored


def _restore(
    quantized: QuantizedFolder, entry: Entry, target: TargetFile, budget: MemoryBudget, advance: Callable[[int], None]
) -> None:
    stored = quantized.tensors.get(entry.name)
    if stored is None:
        for at in range(0, entry.nbytes, READ_BYTES):
            raw = quantized.read(entry.name, at, min(READ_BYTES, entry.nbytes - at))
            target.write(raw, entry.start + at)
            advance(raw.nbytes)
        return
    g = stored.geometry
    what = f"{quantized.folder.path}: tensor {entry.name!r}"
    matrix_bytes = entry.nbytes // g.count
    for index in range(g.count):
        for first, last in budget.windows(what, g.rows, 12 * g.cols, can_be_cut=g.axis == 0):
            matrix = quantized.rows(entry.name, index, first, last).dequantize(stored.kind)
            values = matrix if g.axis == 0 else from_matrix(matrix, g.matrix_shape, g.axis)
            raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            target.write(raw, entry.start + index * matrix_bytes + first * (matrix_bytes // g.rows))
            advance(raw.nbytes)


def _metadata(folder: Folder, name: str) -> dict[str, str]:
    return next(dict(shard.metadata) for shard in folder.shards if shard.name == name) or {"format": "pt"}


def _write_small_files(
    folder: Folder, headers: dict[str, tuple[bytes, list[Entry]]], total: int, workplace: Workplace
) -> None:
    original = source_card(folder.other_files)
    left_out = {REPORT_NAME, CARD_NAME, original}
    workplace.copy_in(folder.path, [name for name in folder.other_files if name not in left_out])
    if original is not None:
        workplace.copy_in(folder.path, [original], CARD_NAME)
    if folder.index_name is not None:
        weight_map = {entry.name: name for name, (_, entries) in headers.items() for entry in entries}
        index = {
            "metadata": {**folder.index_metadata, "total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        workplace.write_text(folder.index_name, json.dumps(index, indent=2) + "\n")
    config = {key: value for key, value in folder.config.items() if key != "quantization_config"}
    workplace.write_text("config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
