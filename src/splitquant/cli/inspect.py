"""`splitquant inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitquant.cli.arguments import Json, MaxMemory


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A quantized folder, or a float one.")],
    *,
    json_file: Json = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the error along the depth, or one tensor (.svg or .png).")
    ] = None,
    tensor: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of --plot: draw the values of this tensor, its levels and borders."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(metavar="SRC", help="Of --tensor: the float folder, to draw its values and the errors."),
    ] = None,
    max_memory: MaxMemory = "1GiB",
) -> None:
    """Show what a folder holds: every tensor with its spec (or what the rules would make of it), bits per weight, size."""
    from splitquant import api
    from splitquant.cli.tables import show, summary_table, tensor_table
    from splitquant.cli.terminal import check_json_target, say, write_json

    _check_options(plot, tensor, source)
    check_json_target(plot, *api.files_of(folder))
    found = api.inspect(folder)
    if plot is not None:
        from splitquant.cli.pictures import write_depth, write_tensor

        if tensor is None:
            write_depth(plot, found.report)
        else:
            seen = api.distribution(folder, tensor, source, max_memory=max_memory)
            outcome = next((one for one in found.report if one.name == tensor), None)
            write_tensor(plot, tensor, outcome, seen)
    write_json(json_file, found.report.to_dict())
    if str(json_file) == "-":
        return
    if not found.quantized:
        say("a float folder; this is what 'splitquant quantize' would do with it:")
    show(tensor_table(found.report.outcomes), summary_table(found.report, planned=not found.quantized))
    if plot is not None:
        say(f"drawn in {plot}")


def _check_options(plot: Path | None, tensor: str | None, source: Path | None) -> None:
    from splitquant.cli.pictures import check_picture
    from splitquant.errors import SpecError

    if tensor is not None and plot is None:
        raise SpecError("--tensor is what --plot draws; give --plot FILE, or leave it out")
    if source is not None and tensor is None:
        raise SpecError("--source is where the values of --tensor come from; give --tensor NAME, or leave it out")
    check_picture(plot)
