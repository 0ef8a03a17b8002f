"""A quantized folder back to plain floats, for tools that read nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from splitquant.checkpoint.folder import Folder, Shard
from splitquant.checkpoint.quantized import QuantizedFolder
from splitquant.checkpoint.safetensors import Entry, build_header
from splitquant.checkpoint.sidecar import small_files_bytes
from splitquant.core.arrays import U8
from splitquant.core.rows import from_matrix
from splitquant.format.config import without_config
from splitquant.format.dtypes import DTYPE_OF_KIND
from splitquant.format.planes import plane_key
from splitquant.report.card import CARD_NAME, source_card
from splitquant.report.outcome import REPORT_NAME
from splitquant.storage.checksum import Checksum, checksum_of, join
from splitquant.storage.files import SourceFile, TargetFile
from splitquant.storage.memory import MIB, MemoryBudget
from splitquant.storage.resources import Resources
from splitquant.storage.workplace import Workplace, check_destination, check_room, fingerprint_of
from splitquant.version import __version__

READ_BYTES = 8 * MIB


def dequantize_folder(
    quantized: QuantizedFolder,
    destination: Path,
    resources: Resources,
    advance: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the float folder that a quantized one stands for, in the dtypes of the original; returns its tensor bytes.

    Every weight is `row_scale * levels[cluster, code]` rounded to its dtype; kept tensors are copied byte for byte.
    Raises SourceError and DestinationError.
    """
    source = quantized.folder.path
    budget = replace(resources, threads=1).budget(len(quantized.tensors) + len(quantized.kept))
    check_destination(source, destination, force=resources.force)
    outputs = {shard.name: _outputs(quantized, shard) for shard in quantized.folder.shards}
    headers = {name: build_header(items, _metadata(quantized.folder, name)) for name, items in outputs.items()}
    total = sum(entry.nbytes for _, entries in headers.values() for entry in entries)
    check_room(destination, total + small_files_bytes(len(quantized.folder.tensors)))
    fingerprint = repr([__version__, *(fingerprint_of(source / shard.name) for shard in quantized.folder.shards)])
    with Workplace(destination, fingerprint, force=resources.force, durable=resources.durable) as workplace:
        for name, (header, entries) in headers.items():
            if workplace.finished(name, _is_whole) is not None:
                advance(sum(entry.nbytes for entry in entries))
                continue
            size = len(header) + sum(entry.nbytes for entry in entries)
            with TargetFile(workplace.growing(name), size) as target:
                target.write(header, 0)
                pieces = [Checksum.of(np.frombuffer(header, np.uint8))]
                for entry in entries:  # as they lie in the file, so that their checksums make up that of the file
                    for at, raw in _restored(quantized, entry, budget):
                        target.write(raw, entry.start + at)
                        pieces.append(Checksum.of(raw))
                        advance(raw.nbytes)
                checksum = str(join(pieces))
            workplace.finish(name, checksum, source / name)
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


def _is_whole(path: Path, checksum: str) -> bool:
    with SourceFile(path) as file:
        return str(checksum_of(file, 0, file.nbytes)) == checksum


def _restored(quantized: QuantizedFolder, entry: Entry, budget: MemoryBudget) -> Iterator[tuple[int, U8]]:
    """The bytes of a tensor of the float folder, piece by piece in their order, each with where it begins in the tensor."""
    stored = quantized.tensors.get(entry.name)
    if stored is None:
        for at in range(0, entry.nbytes, READ_BYTES):
            yield at, quantized.read(entry.name, at, min(READ_BYTES, entry.nbytes - at))
        return
    g = stored.geometry
    what = f"{quantized.folder.path}: tensor {entry.name!r}"
    matrix_bytes = entry.nbytes // g.count
    for index in range(g.count):
        for first, last in budget.windows(what, g.rows, 12 * g.cols, can_be_cut=g.axis == 0):
            matrix = quantized.rows(entry.name, index, first, last).dequantize(stored.kind)
            values = matrix if g.axis == 0 else from_matrix(matrix, g.matrix_shape, g.axis)
            raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            yield index * matrix_bytes + first * (matrix_bytes // g.rows), raw


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
    workplace.write_text("config.json", json.dumps(without_config(folder.config), indent=2, ensure_ascii=False) + "\n")
