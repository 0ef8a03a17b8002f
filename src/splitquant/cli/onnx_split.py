"""`splitquant split model.onnx`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import splitquant.onnx as sqo
from splitquant.cli.onnx_tables import show_report
from splitquant.cli.terminal import byte_progress, check_json_target
from splitquant.core.spec import QuantSpec


def run_onnx_split(
    source: Path,
    output: Path,
    spec: QuantSpec,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    max_memory: str,
    threads: int,
    json_file: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Split with progress, then the table."""
    check_json_target(json_file, source, output)
    with byte_progress("splitting", weight_bytes(source), quiet=quiet) as advance:
        done = sqo.split(
            source,
            output,
            spec,
            include=include,
            exclude=exclude,
            max_memory=max_memory,
            threads=threads,
            force=force,
            advance=advance,
        )
    show_report(done.report, output, json_file, quiet=quiet, verbose=verbose)


def weight_bytes(source: Path) -> int:
    """How many bytes of weights a model has, for a progress bar."""
    files = [source, *source.parent.glob(f"{source.name}.data")]
    return sum(file.stat().st_size for file in files if file.is_file())
