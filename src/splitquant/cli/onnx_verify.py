"""`splitquant verify model.onnx out.onnx`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

import splitquant.onnx as sqo
from splitquant.cli.tables import show
from splitquant.cli.terminal import check_json_target, say, write_json
from splitquant.errors import SourceError, SpecError
from splitquant.onnx.verify import Verification
from splitquant.onnx.wire.source import data_files_of
from splitquant.report.summary import decibels


@dataclass(frozen=True, slots=True)
class OnnxCheck:
    """Which models to compare, on what, and what to say of it.

    inputs: an .npz file with one array per model input (None: generated inputs). sizes: of open dimensions, NAME=N each.
    """

    source: Path
    converted: Path
    inputs: Path | None = None
    sizes: Sequence[str] = ()
    min_sqnr: float | None = None
    json_file: Path | None = None
    quiet: bool = False


def run_onnx_verify(check: OnnxCheck) -> None:
    """Run both models and print how near the outputs are, and which branches use a low-bit kernel."""
    if check.json_file is not None:
        models = [check.source, check.converted]
        data = [file for model in models for file in data_files_of(model)]
        check_json_target(check.json_file, *models, *data, *([check.inputs] if check.inputs else []))
    if check.sizes and check.inputs is not None:
        raise SpecError("--size is of generated inputs, and --inputs gives them; leave one of the two out")
    inputs = None if check.inputs is None else _read(check.inputs)
    result = sqo.verify(check.source, check.converted, inputs, sizes=_sizes(check.sizes), min_sqnr=check.min_sqnr)
    write_json(check.json_file, result.to_dict())
    if not check.quiet and str(check.json_file) != "-":
        _show(result)
    for warning in result.warnings:
        say(f"warning: {warning}")


def _show(result: Verification) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("output")
    told = any(one.explained_db is not None for one in result.outputs)
    for column in ("SQNR", *(["by the weights"] if told else []), "cosine", "largest error"):
        table.add_column(column, justify="right")
    for one in result.outputs:
        explained = "" if one.explained_db is None else decibels(one.explained_db)
        row = [
            one.name,
            decibels(one.sqnr_db),
            *([explained] if told else []),
            f"{one.cosine:.6f}",
            f"{one.max_error:.3g}",
        ]
        table.add_row(*row)
    show(table)
    if result.branches:
        say(
            f"{result.branches} low-bit branches: {result.in_kernels} use a low-bit kernel of ONNX Runtime, "
            f"{result.dequantized} are dequantized in every run, {result.folded} once at load",
        )
    for hint in result.hints:
        say(hint)
    if result.refusal:
        say(f"the onnx checker refuses both models: {result.refusal}")
    else:
        say("the onnx checker accepts the model")


def _sizes(given: Sequence[str]) -> dict[str, int]:
    """NAME=N as a table; SpecError for anything else."""
    sizes: dict[str, int] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if not name or not number.isascii() or not number.isdecimal() or len(number) > 9:
            raise SpecError(f"--size {text!r}: expected NAME=N, for instance --size sequence=16")
        sizes[name] = int(number)
    return sizes


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # numpy, zipfile and zlib have no common one for what is damaged
        raise SourceError(
            f"{path}: is no .npz file with the model's inputs ({error}); save them with numpy.savez, one array per input"
        ) from error
