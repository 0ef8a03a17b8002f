"""`splitquant split`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitquant.cli.arguments import (
    DryRun,
    Exclude,
    Force,
    Json,
    MaxMemory,
    NoFsync,
    Output,
    Quiet,
    TargetName,
    Threads,
    Verbose,
    fixed_fields,
)


def split(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="An ONNX model.")],
    output: Output,
    *,
    bits: Annotated[
        int | None, typer.Option(min=2, max=8, help="Bits of the quantizer to come; for residual. [default: 4]")
    ] = None,
    clusters: Annotated[
        int | None, typer.Option("--clusters", "-k", min=1, max=8, help="Branches per layer. [default: 3; 2 residual]")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="min_error, kmeans (the paper), magnitude or residual. [default: min_error]")
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help="channel, tensor or group:N of the quantizer to come. [default: channel]")
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="The quantizer to come is symmetric.")] = False,
    full_range: Annotated[
        bool,
        typer.Option(
            "--full-range",
            help="It is symmetric and uses all codes (absmax / 8 at 4 bits, signed scale); for residual.",
        ),
    ] = False,
    target: TargetName = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Split these nodes or weights (wins over --exclude and all rules by kind)."
        ),
    ] = None,
    exclude: Exclude = None,
    max_memory: MaxMemory = "1GiB",
    threads: Threads = 0,
    dry_run: DryRun = False,
    json_file: Json = None,
    force: Force = False,
    no_fsync: NoFsync = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Split each layer of an ONNX model into float branches, for another tool's quantizer to take over.

    Example: splitquant split model.onnx -o split.onnx
    """
    from splitquant.cli.conversion import Conversion
    from splitquant.errors import SourceError
    from splitquant.onnx.forms.options import split_spec
    from splitquant.onnx.job import prepare_model
    from splitquant.plan.options import PlanOptions

    if source.is_dir():
        raise SourceError(f"{source}: is a folder; split takes an .onnx file, and quantize takes folders")
    fixed = fixed_fields(bits=bits, clusters=clusters, strategy=strategy, granularity=granularity, symmetric=symmetric)
    options = PlanOptions(
        spec=split_spec(target, **fixed), embeddings=None, include=tuple(include or ()), exclude=tuple(exclude or ())
    )
    run = Conversion(
        "splitting",
        source,
        output,
        max_memory,
        threads,
        force,
        not no_fsync,
        dry_run,
        json_file,
        None,
        None,
        None,
        quiet,
        verbose,
    )
    run.check()
    run.go(
        lambda resources, advance: prepare_model(
            source, options, resources, advance, format="float", full_range=full_range
        )
    )
