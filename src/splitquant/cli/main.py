"""`splitquant`: the verbs, their options, and the one place where errors become output and exit codes."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitquant import __version__
from splitquant.errors import SourceError, SpecError, SplitQuantError

app = typer.Typer(
    name="splitquant",
    help="Plain linear low-bit quantization that works: no GPU, no calibration data, any architecture.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[
    Path, typer.Argument(metavar="SRC", help="Hugging Face folder (config.json and *.safetensors), or an .onnx file.")
]
Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="DST", help="What to write; appears complete or not at all.")
]
MaxMemory = Annotated[str, typer.Option(metavar="SIZE", help="Bound on the peak memory of the process.")]
Threads = Annotated[
    int, typer.Option(metavar="N", help="Threads; 0 takes all processors. Never changes the bytes written.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the full report as JSON ('-': standard output).")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Also list every tensor.")]


def _is_onnx(source: Path) -> bool:
    return source.suffix.lower() == ".onnx"


class Preset(StrEnum):
    """Named sets of options."""

    best = "best"
    paper = "paper"


class Strategy(StrEnum):
    """How borders between clusters are found."""

    min_error = "min_error"
    kmeans = "kmeans"


class OnnxFormat(StrEnum):
    """How an ONNX model stores low-bit weights."""

    qdq = "qdq"
    matmulnbits = "matmulnbits"


@app.callback(invoke_without_command=True)
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and the kernels in use.", is_eager=True)
    ] = False,
) -> None:
    """Plain linear low-bit quantization that works: no GPU, no calibration data, any architecture."""
    if version:
        from splitquant.core.kernels import kernels

        typer.echo(f"splitquant {__version__} ({kernels().name} kernels)")
        raise typer.Exit


@app.command()
def quantize(
    source: Source,
    output: Output,
    *,
    bits: Annotated[int | None, typer.Option(min=2, max=8, help="Bits of a code. [default: 4]")] = None,
    clusters: Annotated[
        int | None,
        typer.Option("--clusters", "-k", min=1, max=8, help="Clusters per tensor. [default: 4 fused, 3 parallel]"),
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="min_error, or kmeans (the paper). [default: min_error]")] = None,
    granularity: Annotated[str | None, typer.Option(help="channel, tensor or group:N. [default: channel]")] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="fused (own range per cluster), or parallel (zero in every grid). [default: fused]"),
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Signed grids centred on zero.")] = False,
    embeddings: Annotated[
        str, typer.Option(metavar="keep|BITS", help="Token embeddings and output heads: keep, or bits per channel.")
    ] = "8",
    include: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Quantize these tensors (wins over all rules).")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Keep these tensors as they are.")
    ] = None,
    form: Annotated[
        OnnxFormat | None,
        typer.Option(
            "--format", help="Of .onnx: qdq (standard operators) or matmulnbits (ONNX Runtime's). [default: qdq]"
        ),
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="paper: SplitQuantV2 as published (k=3, kmeans, per tensor, zero in range, INT4).")
    ] = Preset.best,
    max_memory: MaxMemory = "1GiB",
    threads: Threads = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the sizes; write nothing.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if any linear, convolution or expert weight would be kept.")
    ] = False,
    json_file: Json = None,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Quantize a Hugging Face folder into a low-bit folder that transformers loads, or an .onnx file into a low-bit one.

    Example: splitquant quantize Llama-3.2-1B -o Llama-3.2-1B-int4
    """
    from splitquant.api import recipe_of
    from splitquant.cli.quantize import Choices, run_quantize

    if _is_onnx(source):
        from splitquant.cli.onnx_quantize import run_onnx_quantize

        if dry_run or strict:
            raise SpecError("--dry-run and --strict are for folders; an ONNX model is converted as a whole")
        choices = Choices(bits, clusters, strategy, granularity, layout or "parallel", symmetric)
        run_onnx_quantize(
            source,
            output,
            choices.spec(paper=preset is Preset.paper),
            form=(form or OnnxFormat.qdq).value,
            embeddings=embeddings,
            include=include or (),
            exclude=exclude or (),
            max_memory=max_memory,
            threads=threads,
            json_file=json_file,
            force=force,
            quiet=quiet,
            verbose=verbose,
        )
        return
    if form is not None:
        raise SpecError(f"--format is of .onnx files, and {source} is none; leave it out")
    choices = Choices(bits, clusters, strategy, granularity, layout, symmetric)
    run_quantize(
        source,
        output,
        recipe_of(choices.spec(paper=preset is Preset.paper), embeddings, include or (), exclude or ()),
        max_memory=max_memory,
        threads=threads,
        dry_run=dry_run,
        strict=strict,
        json_file=json_file,
        force=force,
        quiet=quiet,
        verbose=verbose,
    )


@app.command()
def split(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="An ONNX model.")],
    output: Output,
    *,
    clusters: Annotated[int, typer.Option("--clusters", "-k", min=1, max=8, help="Branches per layer.")] = 3,
    strategy: Annotated[Strategy, typer.Option(help="min_error, or kmeans (the paper).")] = Strategy.min_error,
    granularity: Annotated[str, typer.Option(help="channel, tensor or group:N of the quantizer to come.")] = "channel",
    include: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Split these nodes or weights (wins over all rules).")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Keep these nodes or weights as they are.")
    ] = None,
    max_memory: MaxMemory = "1GiB",
    threads: Threads = 0,
    json_file: Json = None,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Split each layer of an ONNX model into float branches, for another tool's quantizer to take over.

    Example: splitquant split model.onnx -o split.onnx
    """
    from splitquant.cli.onnx_split import run_onnx_split
    from splitquant.core.spec import QuantSpec

    if source.is_dir():
        raise SourceError(f"{source}: is a folder; split takes an .onnx file, and quantize takes folders")
    spec = QuantSpec(clusters=clusters, strategy=strategy.value, granularity=granularity, layout="parallel")
    run_onnx_split(
        source,
        output,
        spec,
        include=include or (),
        exclude=exclude or (),
        max_memory=max_memory,
        threads=threads,
        json_file=json_file,
        force=force,
        quiet=quiet,
        verbose=verbose,
    )


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A quantized folder, or a float one.")],
    *,
    json_file: Json = None,
) -> None:
    """Show what a folder holds: every tensor with its spec (or what the rules would make of it), bits per weight, size."""
    from splitquant.cli.inspect import run_inspect

    run_inspect(folder, json_file)


@app.command()
def verify(
    source: Source,
    quantized: Annotated[Path, typer.Argument(metavar="DST", help="What was made from SRC.")],
    *,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of .onnx: an .npz file with the model's inputs (else made up).")
    ] = None,
    min_sqnr: Annotated[
        float | None, typer.Option(metavar="DB", help="Of .onnx: fail if an output has a lower SQNR.")
    ] = None,
    max_memory: MaxMemory = "1GiB",
    quiet: Quiet = False,
) -> None:
    """Hold a result against its source; exit 1 if anything is off.

    Folders: nothing missing, every checksum right, every error figure recomputed. ONNX: both models run and are compared.
    """
    if _is_onnx(source):
        from splitquant.cli.onnx_verify import run_onnx_verify

        run_onnx_verify(source, quantized, inputs=inputs, min_sqnr=min_sqnr, quiet=quiet)
        return
    from splitquant.cli.verify import run_verify

    run_verify(source, quantized, max_memory, quiet=quiet)


@app.command()
def dequantize(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A quantized folder.")],
    output: Output,
    *,
    max_memory: MaxMemory = "1GiB",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write the plain float folder that a quantized one stands for, for tools that only read floats."""
    from splitquant.cli.dequantize import run_dequantize

    run_dequantize(folder, output, max_memory, force=force, quiet=quiet)


def run() -> None:
    """Run the command line: exit 0 done, 1 failed, 2 wrong usage; expected errors are one message, no traceback."""
    try:
        app()
    except SplitQuantError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, code: int) -> None:
    text = f"error: {message}"
    typer.echo(text if "NO_COLOR" in os.environ else typer.style(text, fg=typer.colors.RED), err=True)
    sys.exit(code)


if __name__ == "__main__":
    run()
