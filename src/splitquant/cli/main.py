"""`splitquant`: the verbs, and the one place where errors become output and exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from splitquant.cli.dequantize import dequantize
from splitquant.cli.evaluate import evaluate
from splitquant.cli.inspect import inspect
from splitquant.cli.quantize import quantize
from splitquant.cli.report import report
from splitquant.cli.signals import exit_code_of
from splitquant.cli.split import split
from splitquant.cli.terminal import printable
from splitquant.cli.verify import verify
from splitquant.errors import SplitQuantError
from splitquant.version import __version__

app = typer.Typer(
    name="splitquant",
    help="Plain linear low-bit quantization that works: no GPU, no calibration data, any architecture.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (quantize, split, inspect, verify, report, dequantize, evaluate):
    app.command()(verb)


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
        from splitquant.core.products import product_kernel

        products = product_kernel() or "decoded weights"
        typer.echo(f"splitquant {__version__} ({kernels().name} kernels; products by {products})")
        raise typer.Exit


def run() -> None:
    """Run the command line: exit 0 done, 1 failed, 2 wrong usage; expected errors are one message, no traceback."""
    try:
        app()
    except SplitQuantError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        _fail("interrupted", exit_code_of(stop))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # of a path that was typed, such as a name that is too long
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; choose another path", 1)


def _fail(message: str, code: int) -> None:
    text = f"error: {printable(message)}"
    typer.echo(text if "NO_COLOR" in os.environ else typer.style(text, fg=typer.colors.RED), err=True)
    sys.exit(code)


if __name__ == "__main__":
    run()
