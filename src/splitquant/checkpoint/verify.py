"""Hold a quantized folder against its source: nothing missing, every checksum right, every error figure recomputed."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.quantized import QuantizedFolder, open_quantized
from splitquant.checkpoint.source_rows import SourceRows
from splitquant.core.error import NO_ERROR, ErrorFigures, ErrorSums, figures_of
from splitquant.core.floats import to_float32
from splitquant.core.reference import row_errors
from splitquant.errors import VerifyError
from splitquant.format.config import KEY, with_config, without_config
from splitquant.format.dtypes import DTYPES
from splitquant.report.card import CARD_NAME
from splitquant.report.outcome import REPORT_NAME, Outcome, Report
from splitquant.storage.checksum import checksum_of
from splitquant.storage.files import SourceFile
from splitquant.storage.memory import MIB, MemoryBudget

READ_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class Verified:
    """What a successful verification held together."""

    report: Report
    tensors: int
    checksums: int


def verify_folder(
    folder: Folder, destination: Path, budget: MemoryBudget, advance: Callable[[int], None] = lambda _: None
) -> Verified:
    """Verify a quantized folder against its source; VerifyError names the first tensor that is off, and how."""
    quantized = open_quantized(destination)
    budget = replace(budget, tensors=len(folder.tensors), threads=1)
    report = quantized.report()
    _check_inventory(folder, quantized, report)
    checksums = 0
    for outcome in report.outcomes:
        checksums += _check_checksums(quantized, outcome)
        stored = quantized.tensors.get(outcome.name)
        if stored is None:
            _check_kept(folder, quantized, outcome.name)
        else:
            _check_figures(folder, quantized, outcome, budget)
        advance(outcome.source_bytes)
    return Verified(report, len(report.outcomes), checksums)


def _check_inventory(folder: Folder, quantized: QuantizedFolder, report: Report) -> None:  # noqa: C901 - a flat list of checks, each with its reason, reads best in one piece
    """Every tensor of the source is there, quantized or kept, as the report says; nothing else is; other files are the same."""
    place, kept = quantized.folder.path, quantized.kept
    outcomes = {outcome.name: outcome for outcome in report.outcomes}
    for name, entry in folder.tensors.items():
        stored = quantized.tensors.get(name)
        if name not in outcomes:
            raise VerifyError(f"{place / REPORT_NAME}: tensor {name!r} of the source is not in the report")
        if stored is None and name not in kept:
            raise VerifyError(f"{place}: tensor {name!r} of the source is missing")
        shape = kept[name].shape if stored is None else stored.shape
        if shape != entry.shape:
            raise VerifyError(f"{place}: tensor {name!r} has shape {shape}; the source has {entry.shape}")
        said = outcomes[name]
        found = (
            "kept" if stored is None else "quantized",
            None if stored is None else stored.spec,
            entry.dtype,
            entry.shape,
            entry.nbytes,
            kept[name].nbytes if stored is None else stored.nbytes,
        )
        if found != (said.outcome, said.spec, said.dtype, said.shape, said.source_bytes, said.stored_bytes):
            raise VerifyError(
                f"{place / REPORT_NAME}: tensor {name!r} is reported otherwise than it is: {said}; found {found}"
            )
    for name in (*kept, *quantized.tensors, *outcomes):
        if name not in folder.tensors:
            raise VerifyError(f"{place}: tensor {name!r} is not in the source {folder.path}")
    table = quantized.folder.config[KEY]
    if without_config(quantized.folder.config) != without_config(folder.config):
        raise VerifyError(f"{place / 'config.json'}: differs from the source's in more than quantization_config")
    if quantized.folder.config != with_config(folder.config, table):
        raise VerifyError(
            f"{place / 'config.json'}: has another quantization_config in a nested configuration than its own"
        )
    for name in folder.other_files:
        if name not in (CARD_NAME, REPORT_NAME) and not _same_file(folder.path / name, place / name):
            raise VerifyError(f"{place / name}: is missing or differs from the source's")


def _same_file(before: Path, after: Path) -> bool:
    try:
        return filecmp.cmp(before, after, shallow=False)
    except OSError:
        return False


def _check_checksums(quantized: QuantizedFolder, outcome: Outcome) -> int:
    stored = quantized.tensors.get(outcome.name)
    names = [outcome.name] if stored is None else [plane for plane, _, _ in stored.stored(outcome.name)]
    if set(names) != set(outcome.checksums):
        raise VerifyError(
            f"{quantized.folder.path / REPORT_NAME}: tensor {outcome.name!r} has checksums of other planes than it has"
        )
    for name in names:
        entry = quantized.folder.tensors[name]
        with SourceFile(quantized.folder.path / quantized.folder.shard_of[name]) as file:
            found = str(checksum_of(file, entry.start, entry.nbytes))
        if found != outcome.checksums[name]:
            raise VerifyError(
                f"{quantized.folder.path / quantized.folder.shard_of[name]}: tensor {name!r} has the checksum {found}; "
                f"{outcome.checksums[name]} was written: the file is damaged, copy it again or quantize again"
            )
    return len(names)


def _check_kept(folder: Folder, quantized: QuantizedFolder, name: str) -> None:
    before, after = folder.tensors[name], quantized.folder.tensors[name]
    if before.dtype != after.dtype:
        raise VerifyError(
            f"{quantized.folder.path}: kept tensor {name!r} is {after.dtype}; the source has {before.dtype}"
        )
    with SourceFile(folder.path / folder.shard_of[name]) as file:
        for at in range(0, before.nbytes, READ_BYTES):
            raw = np.empty(min(READ_BYTES, before.nbytes - at), np.uint8)
            file.read_into(raw, before.start + at)
            if not np.array_equal(raw, quantized.read(name, at, raw.nbytes)):
                raise VerifyError(f"{quantized.folder.path}: kept tensor {name!r} differs from the source")


def _check_figures(folder: Folder, quantized: QuantizedFolder, outcome: Outcome, budget: MemoryBudget) -> None:
    figures = recomputed_figures(folder, quantized, outcome.name, budget)
    if figures != outcome.figures:
        raise VerifyError(
            f"{quantized.folder.path}: tensor {outcome.name!r} has the error figures {figures}; {outcome.figures} were reported: "
            "it does not stand for the source's tensor, or one of the two was changed"
        )


def recomputed_figures(folder: Folder, quantized: QuantizedFolder, name: str, budget: MemoryBudget) -> ErrorFigures:
    """The error figures of a stored tensor against its source, computed from what is on disk."""
    g, total = quantized.tensors[name].geometry, NO_ERROR
    entry = folder.tensors[name]
    what = f"{folder.path / folder.shard_of[name]}: tensor {name!r}"
    row_bytes = g.cols * (DTYPES[entry.dtype].window_bytes + 24)  # weights and decoded ones, their difference, squares
    for index in range(g.count):
        errors: list[ErrorSums] = []
        source = SourceRows(folder, name, g, index)
        for first, last in budget.windows(what, g.rows, row_bytes):
            w_hat = quantized.rows(name, index, first, last).dequantize()
            errors.append(row_errors(to_float32(source.rows(first, last)), w_hat).sums)
        total = total.merge(figures_of(g.rows * g.cols, errors))
    return total


def with_figures(folder: Folder, quantized: QuantizedFolder, report: Report, budget: MemoryBudget) -> Report:
    """A report with error figures of all that is quantized: those that it lacks, being an outline, are computed."""
    return replace(
        report,
        outcomes=tuple(
            replace(one, figures=recomputed_figures(folder, quantized, one.name, budget))
            if one.figures is None and one.name in quantized.tensors
            else one
            for one in report.outcomes
        ),
    )
