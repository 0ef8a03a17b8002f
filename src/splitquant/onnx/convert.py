"""The two jobs as functions: an ONNX model in, a split float model or a low-bit model out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from splitquant.core.spec import QuantSpec
from splitquant.onnx.forms.options import SPLIT_SPEC, Activations, Format
from splitquant.onnx.job import Converted, Model, prepare_model
from splitquant.plan.options import PlanningOptions, PlanOptions
from splitquant.storage.memory import DEFAULT_MAX_MEMORY
from splitquant.storage.resources import Resources


def split(  # noqa: PLR0913 - the options of a public function
    model: Model,
    out_path: str | Path | None = None,
    spec: QuantSpec = SPLIT_SPEC,
    *,
    full_range: bool = False,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    force: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Converted:
    """Split each layer of an ONNX model into k float layers, whose sum is the same function.

    Args:
        model: a file, or a model in memory.
        out_path: what to write; None: the model stays in memory.
        spec: its clusters, strategy and granularity say where values are cut; the parts of a weight sum to it exactly
            (residual ones in 16 bits within one rounding). For `residual`, bits and symmetric say on which grid the first
            parts lie.
        full_range: that grid is symmetric and uses all codes, see `OnnxForm`.
        include: names or glob patterns of nodes or weights; wins over `exclude`.
        exclude: names or glob patterns of nodes or weights that stay as they are.
        max_memory: bound on the peak memory of the process.
        threads: 0 takes all processors.
        force: whether a file at `out_path` may be replaced.
        advance: told the bytes of weights that are done, from any thread.

    Raises:
        SpecError, SourceError, TensorError, DestinationError: on an error nothing is written.
    """
    options = PlanOptions(spec=spec, embeddings=None, include=include, exclude=exclude)
    resources = Resources.of(max_memory, threads, force=force)
    return _convert(model, out_path, options, resources, advance, format="float", full_range=full_range)


def quantize(  # noqa: PLR0913 - the options of a public function
    model: Model,
    out_path: str | Path | None = None,
    spec: QuantSpec | None = None,
    *,
    format: Format = "qdq",  # noqa: A002 - what the command line and other quantizers call it
    embeddings: QuantSpec | int | str | None = "auto",
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    block_size: int | None = None,
    accuracy_level: int | None = None,
    activations: Activations | None = None,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    force: bool = False,
    advance: Callable[[int], None] = lambda _: None,
    **options: Unpack[PlanningOptions],
) -> Converted:
    """Quantize an ONNX model: each layer becomes k branches with low-bit integer weights (one for `clusters=1`).

    Args:
        model: as in `split`.
        out_path: as in `split`.
        spec: None: `DEFAULT_SPEC`, or by `options`; others must be parallel.
        format: `qdq` (DequantizeLinear before the layer: standard operators only) or `matmulnbits` (ONNX Runtime's operator
            for MatMul and Gemm, QDQ for convolutions).
        embeddings: of tables that Gather reads, as in `splitquant.quantize`.
        include: as in `split`.
        exclude: as in `split`.
        block_size: see `OnnxForm`.
        accuracy_level: see `OnnxForm`.
        activations: see `OnnxForm`.
        max_memory: as in `split`.
        threads: as in `split`.
        force: as in `split`.
        advance: as in `split`.
        **options: `fixed`, `target`, `target_bits`, `target_size`, `weighting`, `plan_file`, as in `splitquant.quantize`.

    Raises:
        SpecError, SourceError, TensorError, DestinationError: on an error nothing is written.
    """
    asked = PlanOptions(spec=spec, embeddings=embeddings, include=include, exclude=exclude, **options)
    storage = {"format": format, "block_size": block_size, "accuracy_level": accuracy_level, "activations": activations}
    return _convert(model, out_path, asked, Resources.of(max_memory, threads, force=force), advance, **storage)


def _convert(
    model: Model,
    out_path: str | Path | None,
    options: PlanOptions,
    resources: Resources,
    advance: Callable[[int], None],
    **storage: Any,
) -> Converted:
    with prepare_model(model, options, resources, **storage) as job:
        return job.convert(None if out_path is None else Path(out_path), resources, advance)
