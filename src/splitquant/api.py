"""The main job as Python functions: the names that `import splitquant` offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from splitquant.checkpoint.convert import Resources, plan_folder, quantize_folder
from splitquant.checkpoint.restore import dequantize_folder
from splitquant.checkpoint.verify import Verified, verify_folder
from splitquant.checkpoint.windows import DEFAULT_MAX_MEMORY, parse_bytes
from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.plan.plan import Plan, Recipe, embedding_spec, patterns
from splitquant.report.outcome import Report

AnyPath = str | Path


def quantize(
    source: AnyPath,
    destination: AnyPath,
    spec: QuantSpec | None = None,
    *,
    embeddings: QuantSpec | int | str | None = EMBEDDING,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    force: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Report:
    """Quantize a Hugging Face folder into another one; prints nothing.

    spec: for linear, convolution and expert weights (None: `QuantSpec()`).
    embeddings: for token embeddings and output heads: a spec, a number of bits (per channel, symmetric), or "keep".
    include, exclude: glob patterns of tensor names; `include` wins over `exclude`, both over the rules.
    max_memory: bound on the peak memory of the process, bytes or text such as "1GiB". threads: 0 takes all processors.
    advance: told the number of source bytes that are done, from any thread.
    Raises SpecError, SourceError, TensorError, DestinationError (see `splitquant.errors`); on an error nothing is left.
    """
    recipe = recipe_of(spec, embeddings, include, exclude)
    resources = Resources(_bytes(max_memory), threads, force)
    return quantize_folder(Path(source), Path(destination), recipe, resources, advance)


def dry_run(
    source: AnyPath,
    spec: QuantSpec | None = None,
    *,
    embeddings: QuantSpec | int | str | None = EMBEDDING,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
) -> Plan:
    """What `quantize` would do with every tensor of a folder, and why; reads headers only."""
    return plan_folder(Path(source), recipe_of(spec, embeddings, include, exclude))[1]


def verify(source: AnyPath, destination: AnyPath, *, max_memory: int | str = DEFAULT_MAX_MEMORY) -> Verified:
    """Hold a quantized folder against its source; VerifyError names the first tensor that is off."""
    return verify_folder(Path(source), Path(destination), Resources(_bytes(max_memory), 1).budget())


def dequantize(
    source: AnyPath, destination: AnyPath, *, max_memory: int | str = DEFAULT_MAX_MEMORY, force: bool = False
) -> int:
    """Write the plain float folder that a quantized one stands for; returns the bytes of its tensors."""
    return dequantize_folder(Path(source), Path(destination), Resources(_bytes(max_memory), 1).budget(), force=force)


def recipe_of(
    spec: QuantSpec | None,
    embeddings: QuantSpec | int | str | None,
    include: Sequence[str] | str,
    exclude: Sequence[str] | str,
) -> Recipe:
    """The recipe of user-level options; SpecError names the option that is off."""
    return Recipe(spec or QuantSpec(), embedding_spec(embeddings), patterns(include), patterns(exclude))


def _bytes(size: int | str) -> int:
    return parse_bytes(size) if isinstance(size, str) else size
