"""`splitquant quantize model.onnx`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import splitquant.onnx as sqo
from splitquant.cli.onnx_split import weight_bytes
from splitquant.cli.onnx_tables import show_report
from splitquant.cli.terminal import byte_progress, check_json_target
from splitquant.core.spec import QuantSpec
from splitquant.onnx.options import Format


def run_onnx_quantize(
    source: Path,
    output: Path,
    spec: QuantSpec,
    *,
    form: Format,
    embeddings: str,
    include: Sequence[str],
    exclude: Sequence[str],
    max_memory: str,
    threads: int,
    json_file: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Quantize with progress, then the table; `form` is the --format."""
    check_json_target(json_file, source, output)
    with byte_progress("quantizing", weight_bytes(source), quiet=quiet) as advance:
        done = sqo.quantize(
            source,
            output,
            spec,
            format=form,
            embeddings=embeddings,
            include=include,
            exclude=exclude,
            max_memory=max_memory,
            threads=threads,
            force=force,
            advance=advance,
        )
    show_report(done.report, output, json_file, quiet=quiet, verbose=verbose)
