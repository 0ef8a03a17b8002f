"""`splitquant verify model.onnx out.onnx`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

import splitquant.onnx as sqo
from splitquant.cli.tables import show
from splitquant.cli.terminal import say
from splitquant.errors import SourceError
from splitquant.report.summary import decibels


def run_onnx_verify(source: Path, converted: Path, *, inputs: Path | None, min_sqnr: float | None, quiet: bool) -> None:
    """Run both models and print how near the outputs are, and which branches use a low-bit kernel.

    inputs: an .npz file with one array per model input (None: generated inputs).
    """
    result = sqo.verify(source, converted, None if inputs is None else _read(inputs), min_sqnr=min_sqnr)
    if quiet:
        return
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("output")
    for column in ("SQNR", "cosine", "largest error"):
        table.add_column(column, justify="right")
    for one in result.outputs:
        table.add_row(one.name, decibels(one.sqnr_db), f"{one.cosine:.6f}", f"{one.max_error:.3g}")
    show(table)
    if result.branches:
        say(
            f"{result.branches} low-bit branches: {result.in_kernels} use a low-bit kernel of ONNX Runtime, "
            f"{result.dequantized} are dequantized in every run, {result.folded} once at load",
        )
    if result.refusal:
        say(f"the onnx checker refuses both models: {result.refusal}")
    else:
        say("the onnx checker accepts the model")


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: is no .npz file with the model's inputs ({error})") from error
