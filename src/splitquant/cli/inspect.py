"""`splitquant inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitquant.cli.arguments import Json


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A quantized folder, or a float one.")],
    *,
    json_file: Json = None,
) -> None:
    """Show what a folder holds: every tensor with its spec (or what the rules would make of it), bits per weight, size."""
    from splitquant import api
    from splitquant.cli.tables import show, summary_table, tensor_table
    from splitquant.cli.terminal import say, write_json

    found = api.inspect(folder)
    write_json(json_file, found.report.to_dict())
    if str(json_file) == "-":
        return
    if not found.quantized:
        say("a float folder; this is what 'splitquant quantize' would do with it:")
    show(tensor_table(found.report.outcomes), summary_table(found.report, planned=not found.quantized))
