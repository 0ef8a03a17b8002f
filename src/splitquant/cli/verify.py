"""`splitquant verify`."""

from __future__ import annotations

from pathlib import Path

from splitquant.checkpoint.folder import open_folder
from splitquant.checkpoint.verify import verify_folder
from splitquant.cli.tables import show, summary_table
from splitquant.cli.terminal import byte_progress, say
from splitquant.storage.resources import Resources


def run_verify(source: Path, quantized: Path, max_memory: str, *, quiet: bool) -> None:
    """Verify with progress; VerifyError (exit 1) names the tensor that is off."""
    budget = Resources.of(max_memory, threads=1).budget()
    total = sum(entry.nbytes for entry in open_folder(source).tensors.values())
    with byte_progress("verifying", total, quiet=quiet) as advance:
        verified = verify_folder(source, quantized, budget, advance)
    if not quiet:
        show(summary_table(verified.report))
        say(
            f"verified: {verified.tensors} tensors, {verified.checksums} checksums, all error figures recomputed from both folders"
        )
