"""`splitquant dequantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitquant.cli.arguments import Force, MaxMemory, NoFsync, Output, Quiet


def dequantize(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A quantized folder.")],
    output: Output,
    *,
    max_memory: MaxMemory = "1GiB",
    force: Force = False,
    no_fsync: NoFsync = False,
    quiet: Quiet = False,
) -> None:
    """Write the plain float folder that a quantized one stands for, for tools that only read floats."""
    from splitquant import api
    from splitquant.cli.terminal import CAN_GO_ON, byte_progress, say
    from splitquant.sizes import shown_bytes

    total = api.inspect(folder).report.source_bytes
    with byte_progress("dequantizing", total, quiet=quiet, after=CAN_GO_ON) as advance:
        nbytes = api.dequantize(
            folder, output, max_memory=max_memory, force=force, durable=not no_fsync, advance=advance
        )
    if not quiet:
        say(f"written to {output}: {shown_bytes(nbytes)} of float tensors")
