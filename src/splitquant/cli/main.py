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


class OnnxFormat(StrEnum):
    """How an ONNX model stores low-bit weights."""

    qdq = "qdq"
    matmulnbits = "matmulnbits"


class OnnxActivations(StrEnum):
    """What low-bit weights in an ONNX model are multiplied with."""

    tensor = "int8-tensor"
    row = "int8-token-sym"


TargetName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What is to run it: linear-asym, linear-sym, codebook, onnxruntime, ... (docs/targets.md); picks what was not said.",
    ),
]


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
        typer.Option(
            "--clusters",
            "-k",
            min=1,
            max=8,
            help="Clusters per tensor. [default: 4 fused, 3 parallel; .onnx: 2 (INT4)]",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="min_error, kmeans (the paper), magnitude, residual or lloyd. [default: min_error; .onnx: residual (INT4)]"
        ),
    ] = None,
    granularity: Annotated[str | None, typer.Option(help="channel, tensor or group:N. [default: channel]")] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="fused (own range per cluster), or parallel (zero in every grid). [default: fused; .onnx: parallel]"
        ),
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Signed grids centred on zero.")] = False,
    polish: Annotated[
        bool | None,
        typer.Option(
            "--polish/--no-polish",
            help="Fit the grids to the values. [default: where tensors are split, but not kmeans]",
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
        str | None, typer.Option(metavar="SIZE", help="Choose spec by tensor: size of the whole folder, at most.")
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
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Quantize these tensors (wins over --exclude and all rules by kind)."),
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
    block_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of matmulnbits: weights per scale, 16 to 256, a power of two. [default: 128]"),
    ] = None,
    accuracy_level: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of matmulnbits: 4 computes in int8 (fast), 1 in float32. [default: 4]"),
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
    from splitquant.cli.quantize import Choices, Planning, run_quantize

    planning = Planning(target_bits, target_size, weighting, plan, save_plan, plot)
    if _is_onnx(source):
        from splitquant.cli.onnx_convert import OnnxJob, run_onnx_convert
        from splitquant.core.strategies import facts_of
        from splitquant.onnx.options import Options, usual_spec
        from splitquant.plan.targets import embeddings_for

        if dry_run or strict or planning != Planning():
            raise SpecError(
                "--dry-run, --strict, --target-bits, --target-size and plans are for folders; an ONNX model is converted as a whole"
            )
        if form is not OnnxFormat.matmulnbits and (block_size, accuracy_level) != (None, None):
            raise SpecError("--block-size and --accuracy-level are of --format matmulnbits; leave them out, or add it")
        paper = preset is Preset.paper
        usual = (target, strategy, layout, paper) == (None, None, None, False)
        usual_layout = (
            "parallel" if not usual and target is None and not facts_of(strategy).free_levels else None
        )  # Options refuses free levels
        choices = Choices(bits, clusters, strategy, granularity, layout or usual_layout, symmetric, target, polish)
        options = Options(
            usual_spec(**choices.said()) if usual else choices.spec(paper=paper),
            embeddings_for(target, embeddings or "8"),
            (form or OnnxFormat.qdq).value,
            tuple(include or ()),
            tuple(exclude or ()),
            128 if block_size is None else block_size,
            4 if accuracy_level is None else accuracy_level,
            activations=None if activations is None else activations.value,
        )
        run_onnx_convert(OnnxJob(source, output, options, max_memory, threads, json_file, force, quiet, verbose))
        return
    if block_size is not None or accuracy_level is not None or activations is not None:
        raise SpecError(
            f"--block-size, --accuracy-level and --activations are of .onnx files, and {source} is none; leave them out"
        )
    if form is not None:
        raise SpecError(f"--format is of .onnx files, and {source} is none; leave it out")
    choices = Choices(bits, clusters, strategy, granularity, layout, symmetric, target, polish)
    paper = preset is Preset.paper
    rules = {
        "--embeddings": embeddings,
        "--include": include,
        "--exclude": exclude,
        "--preset": paper,
        "--target": target,
    }
    planning.check([*(f"--{name}" for name in choices.said()), *(name for name, value in rules.items() if value)])
    if paper and planning.by_size:
        raise SpecError("--preset paper decides everything, and a target size leaves it open; leave one of them out")
    run_quantize(
        source,
        output,
        recipe_of(
            None if planning.by_size else choices.spec(paper=paper),
            embeddings or "8",
            include or (),
            exclude or (),
            target,
        ),
        planning,
        planning.goal(choices, choose_embeddings=embeddings is None),
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
    from splitquant.cli.onnx_convert import OnnxJob, run_onnx_convert
    from splitquant.cli.quantize import Choices
    from splitquant.onnx.options import Options

    if source.is_dir():
        raise SourceError(f"{source}: is a folder; split takes an .onnx file, and quantize takes folders")
    spec = Choices(bits, clusters, strategy, granularity, None, symmetric, target).split_spec()
    options = Options(spec, None, "float", tuple(include or ()), tuple(exclude or ()), full_range=full_range)
    run_onnx_convert(OnnxJob(source, output, options, max_memory, threads, json_file, force, quiet, verbose))


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
    if _is_onnx(source):
        from splitquant.cli.onnx_verify import OnnxCheck, run_onnx_verify

        run_onnx_verify(OnnxCheck(source, quantized, inputs, size or (), min_sqnr, json_file, quiet))
        return
    if inputs is not None or min_sqnr is not None or size or json_file is not None:
        raise SpecError(
            f"--inputs, --min-sqnr, --size and --json are of .onnx files, and {source} is none; leave them out"
        )
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
    except OSError as error:  # of a path that was typed, such as a name that is too long
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; choose another path", 1)


def _fail(message: str, code: int) -> None:
    text = f"error: {message}"
    typer.echo(text if "NO_COLOR" in os.environ else typer.style(text, fg=typer.colors.RED), err=True)
    sys.exit(code)


if __name__ == "__main__":
    run()
