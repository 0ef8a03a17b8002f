"""The arguments that several commands share, with one spelling and one help text each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
NoFsync = Annotated[
    bool,
    typer.Option(
        "--no-fsync",
        help="Do not wait until all bytes are on the disk: faster, and a power cut may leave damaged files.",
    ),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the full report as JSON ('-': standard output).")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Also list every tensor.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and the sizes; write nothing.")]
TargetName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What is to run it: linear-asym, linear-sym, codebook, onnxruntime, ... (docs/targets.md); picks what is left open.",
    ),
]
Symmetric = Annotated[bool, typer.Option("--symmetric", help="Signed grids centred on zero.")]
Exclude = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Keep these tensors as they are.")]


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


def fixed_fields(**fields: object) -> dict[str, object]:
    """The fields of `QuantSpec` that were typed."""
    return {
        name: value
        for name, value in fields.items()
        if value not in (None, False) or (name, value) == ("polish", False)
    }
