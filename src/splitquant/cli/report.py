"""`splitquant report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitquant.cli.arguments import MaxMemory, Quiet, Source, Threads


def report(
    source: Source,
    quantized: Annotated[Path, typer.Argument(metavar="DST", help="What was made from SRC.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The HTML file; replaced if it exists.")
    ],
    *,
    max_memory: MaxMemory = "1GiB",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Show a quantized folder beside its source as one HTML file: figures, every tensor, its values, grids and errors.

    The file needs nothing else: it opens offline, loads nothing, and can be sent around.

    Example: splitquant report Llama-3.2-1B Llama-3.2-1B-int4 -o report.html
    """
    from splitquant import api
    from splitquant.cli.terminal import byte_progress, check_json_target, say
    from splitquant.errors import SpecError
    from splitquant.sizes import shown_bytes
    from splitquant.storage.files import write_whole

    if api.is_onnx(source):
        raise SpecError(
            f"{source}: is an .onnx file, and what was made of one holds no figures; have them drawn while it is made: "
            "splitquant quantize SRC.onnx -o DST.onnx --report FILE.html"
        )
    check_json_target(output, *api.files_of(source, quantized))
    with byte_progress("reading", api.source_bytes(source), quiet=quiet) as advance:
        text = api.html_report(source, quantized, max_memory=max_memory, threads=threads, advance=advance)
    write_whole(output, text.encode())
    if not quiet:
        say(f"written to {output}, {shown_bytes(len(text.encode()))}; open it in a browser")
