"""`splitquant quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from splitquant.cli.arguments import (
    DryRun,
    Exclude,
    Force,
    Json,
    MaxMemory,
    NoFsync,
    OnnxActivations,
    OnnxFormat,
    Output,
    Preset,
    Quiet,
    Source,
    Symmetric,
    TargetName,
    Threads,
    Verbose,
    fixed_fields,
)


def quantize(
    source: Source,
    output: Output,
    *,
    bits: Annotated[int | None, typer.Option(min=2, max=8, help="Bits of a code. [default: 4; .onnx: 8]")] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            "--clusters",
            "-k",
            min=1,
            max=8,
            help="Clusters per tensor. [default: 4 fused, 3 parallel; .onnx: 1]",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="min_error, kmeans (the paper), magnitude, residual or lloyd. [default: min_error; of two parts in .onnx residual]"
        ),
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help="channel, tensor or group:N. [default: channel; .onnx up to 4 bits: group:32]")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="fused (own range per cluster), or parallel (zero in every grid). [default: fused; .onnx: parallel]"
        ),
    ] = None,
    symmetric: Symmetric = False,
    polish: Annotated[
        bool | None,
        typer.Option(
            "--polish/--no-polish",
            help="Fit the grids to the values. [default: where tensors are split or zero_points are own, but not kmeans]",
        ),
    ] = None,
    zero_points: Annotated[
        str | None,
        typer.Option(
            help="own (per row or group), or shared. [default: own where one asymmetric cluster has a scale per channel or group]"
        ),
    ] = None,
    target: TargetName = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            metavar="keep|BITS",
            help="Token embeddings and output heads: keep, or bits per channel. [default: 8; chosen where a size is given]",
        ),
    ] = None,
    target_bits: Annotated[
        float | None,
        typer.Option(metavar="BITS", help="Choose spec by tensor: stored bits per weight, at most."),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Choose spec by tensor: size of the whole folder or model, at most."),
    ] = None,
    weighting: Annotated[
        str | None,
        typer.Option(
            metavar="energy|relative|FILE",
            help="What a tensor's error counts; FILE: JSON, numbers by tensor name or pattern. [default: energy]",
        ),
    ] = None,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Do what this plan says (see --save-plan).")] = None,
    save_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan as JSON, to be edited and fed back with --plan.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw size against error (.svg, .png or .html).")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also show the result as an HTML file, as splitquant report does."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Quantize these tensors (wins over --exclude and all rules by kind)."),
    ] = None,
    exclude: Exclude = None,
    form: Annotated[
        OnnxFormat | None,
        typer.Option(
            "--format", help="Of .onnx: qdq (standard operators) or matmulnbits (ONNX Runtime's). [default: qdq]"
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of matmulnbits: weights per scale, 16 to 256, a power of two. [default: 128]"),
    ] = None,
    accuracy_level: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Of matmulnbits: 4 computes in int8 (fast), 1 in float. [default: 4; of float16 weights 1]",
        ),
    ] = None,
    activations: Annotated[
        OnnxActivations | None,
        typer.Option(
            help="Of .onnx: int8-tensor (of qdq) multiplies in integers, int8-token-sym (of matmulnbits) is accuracy level 4.",
        ),
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="paper: SplitQuantV2 as published (k=3, kmeans, per tensor, zero in range, INT4).")
    ] = Preset.best,
    max_memory: MaxMemory = "1GiB",
    threads: Threads = 0,
    dry_run: DryRun = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail if a linear, convolution or expert weight, or over 1 % of weights of unknown use, would be kept.",
        ),
    ] = False,
    json_file: Json = None,
    force: Force = False,
    no_fsync: NoFsync = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Quantize a Hugging Face folder into a low-bit folder that transformers loads, or an .onnx file into a low-bit one.

    Example: splitquant quantize Llama-3.2-1B -o Llama-3.2-1B-int4
    """
    from splitquant.api import prepare
    from splitquant.cli.conversion import Conversion
    from splitquant.errors import SpecError

    fixed = fixed_fields(
        bits=bits,
        clusters=clusters,
        strategy=strategy,
        granularity=granularity,
        layout=layout,
        symmetric=symmetric,
        polish=polish,
        zero_points=zero_points,
    )
    options: dict[str, Any] = {
        "fixed": fixed,
        "preset": preset.value,
        "embeddings": embeddings or "auto",
        "include": tuple(include or ()),
        "exclude": tuple(exclude or ()),
        "target": target,
        "target_bits": target_bits,
        "target_size": target_size,
        "weighting": weighting or "energy",
        "plan": plan,
    }
    of_onnx = {
        "format": form and form.value,
        "block_size": block_size,
        "accuracy_level": accuracy_level,
        "activations": activations and activations.value,
    }
    by_size = target_bits is not None or target_size is not None
    if plot is not None and not by_size:
        raise SpecError("--plot needs --target-bits or --target-size")
    run = Conversion(
        "quantizing",
        source,
        output,
        max_memory,
        threads,
        force,
        not no_fsync,
        dry_run,
        json_file,
        save_plan,
        plot,
        report,
        quiet,
        verbose,
    )
    run.check()
    given: dict[str, Any] = {name: value for name, value in of_onnx.items() if value is not None}
    run.go(
        lambda resources, advance: prepare(source, None, resources, advance, **options, **given),
        strict=strict,
        by_size=by_size,
    )
