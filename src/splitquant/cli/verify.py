"""`splitquant verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitquant.cli.arguments import MaxMemory, Quiet, Source


def verify(
    source: Source,
    quantized: Annotated[Path, typer.Argument(metavar="DST", help="What was made from SRC.")],
    *,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of .onnx: an .npz file with the model's inputs (else made up).")
    ] = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Of .onnx: fail if an output has a lower SQNR. Else one fails that has less than 20 dB and is more than "
            "10 dB below what the weights explain.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Of .onnx: the size of an open dimension of made-up inputs."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Of .onnx: write the result as JSON ('-': standard output)."),
    ] = None,
    max_memory: MaxMemory = "1GiB",
    quiet: Quiet = False,
) -> None:
    """Hold a result against its source; exit 1 if anything is off.

    Folders: nothing missing, every checksum right, every error figure recomputed. ONNX: both models run and are compared.
    """
    from splitquant.api import is_onnx
    from splitquant.errors import SpecError

    if is_onnx(source):
        from splitquant.cli.onnx_verify import OnnxCheck, run_onnx_verify

        run_onnx_verify(OnnxCheck(source, quantized, inputs, size or (), min_sqnr, json_file, quiet))
        return
    if inputs is not None or min_sqnr is not None or size or json_file is not None:
        raise SpecError(
            f"--inputs, --min-sqnr, --size and --json are of .onnx files, and {source} is none; leave them out"
        )
    _verify_folder(source, quantized, max_memory, quiet=quiet)


def _verify_folder(source: Path, quantized: Path, max_memory: str, *, quiet: bool) -> None:
    from splitquant import api
    from splitquant.cli.tables import show, summary_table
    from splitquant.cli.terminal import byte_progress, say

    with byte_progress("verifying", api.source_bytes(source), quiet=quiet) as advance:
        verified = api.verify(source, quantized, max_memory=max_memory, advance=advance)
    if not quiet:
        show(summary_table(verified.report))
        say(
            f"verified: {verified.tensors} tensors, {verified.checksums} checksums, all error figures recomputed from both folders"
        )
