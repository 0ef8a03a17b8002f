"""`splitquant dequantize`."""

from __future__ import annotations

from pathlib import Path

from splitquant.checkpoint.quantized import open_quantized
from splitquant.checkpoint.restore import dequantize_folder
from splitquant.cli.terminal import CAN_GO_ON, byte_progress, say
from splitquant.report.summary import size
from splitquant.storage.resources import Resources


def run_dequantize(path: Path, output: Path, max_memory: str, *, force: bool, quiet: bool) -> None:
    """Dequantize with progress; prints where the float folder is."""
    budget = Resources.of(max_memory, threads=1).budget()
    total = open_quantized(path).float_bytes
    with byte_progress("dequantizing", total, quiet=quiet, after=CAN_GO_ON) as advance:
        nbytes = dequantize_folder(path, output, budget, force=force, advance=advance)
    if not quiet:
        say(f"written to {output}: {size(nbytes)} of float tensors")
