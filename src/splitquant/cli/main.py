"""`splitquant`: the verbs, their options, and the one place where errors become output and exit codes."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitquant import __version__
from splitquant.errors import SplitQuantError

app = typer.Typer(
    name="splitquant",
    help="Plain linear low-bit quantization that works: no GPU, no calibration data, any architecture.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Hugging Face folder: config.json and *.safetensors.")]
Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="DST", help="Folder to write; appears complete or not at all.")
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


class Preset(StrEnum):
    """Named sets of options."""

    best = "best"
    paper = "paper"


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
    """Quantize a Hugging Face folder into a low-bit folder that transformers loads.

    Example: splitquant quantize Llama-3.2-1B -o Llama-3.2-1B-int4
    """
    from splitquant.api import recipe_of
    from splitquant.cli.quantize import Choices, run_quantize

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
    quantized: Annotated[Path, typer.Argument(metavar="DST", help="The quantized folder made from SRC.")],
    *,
    max_memory: MaxMemory = "1GiB",
    quiet: Quiet = False,
) -> None:
    """Re-read both folders: nothing missing, every checksum right, every error figure recomputed. Exit 1 if not."""
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
