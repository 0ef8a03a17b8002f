"""Inputs times packed weights by compiled kernels (native/infer), which read the planes as they stand in the file.

Memory comes as addresses: a call must cost little beside the product of one token. Who calls has checked dtypes, shapes and
that the memory is contiguous and there until the call returns.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple

from splitquant.core.floats import FLOATS, Kind
from splitquant.core.kernels import kernels
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError

try:
    import splitquant._native as _native  # noqa: PLR0402 - mypy accepts a module that may be missing in this form only
except ImportError:
    _native = None

MOST_BITS = 8
PLANES = ("codes", "clusters", "scale", "offset", "levels", "row_scale", "zero_points")
"""The planes that a product reads, in the order of their addresses."""


class Numbers(NamedTuple):
    """What products need to know of a matrix beside its planes.

    rows, cols: its shape. bits, clusters: those of its spec. additive: whether codes hold all parts, and a level is their sum.
    id_bits: bits of a cluster id. groups, group: row_scales of a row, and how many weights share one.
    """

    rows: int
    cols: int
    bits: int
    clusters: int
    additive: int
    id_bits: int
    groups: int
    group: int


def numbers_of(spec: QuantSpec, rows: int, cols: int) -> Numbers:
    """The numbers of a matrix.

    Args:
        spec: by which it is quantized.
        rows: output channels.
        cols: weights of a row.
    """
    groups, group = max(1, spec.groups(cols)), spec.group_size(cols) or cols
    return Numbers(rows, cols, spec.bits, spec.clusters, int(spec.facts.additive), spec.cluster_bits, groups, group)


@cache
def product_kernel() -> str:
    """The compiled kernels of products in use ("" where there are none, and weights are decoded).

    `SPLITQUANT_PRODUCTS` names others of this machine, or `decode` for none; SpecError for an unknown name.
    """
    wanted = os.environ.get("SPLITQUANT_PRODUCTS", "")
    if wanted == "decode" or _native is None or kernels().name != "native":
        return ""
    if wanted:
        try:
            _native.set_product_kernel(wanted)
        except ValueError as error:
            raise SpecError(f"SPLITQUANT_PRODUCTS is {wanted!r}: {error}; or 'decode'") from error
    name: str = _native.product_kernel()
    return name


def most_tokens() -> int:
    """Up to how many tokens a kernel is the faster way; beyond, decoding once and a float product take less time."""
    return 8 if product_kernel() == "portable" else 1 << 62


def why_decoded(spec: QuantSpec, shape: tuple[int, ...]) -> str:
    """Why a weight has no kernel and is decoded in every product ("" if it has one).

    Args:
        spec: by which it is quantized.
        shape: of the weight.
    """
    bits = spec.code_bits + spec.cluster_bits
    if len(shape) != 2 or 0 in shape:
        return f"its shape is {list(shape)}, and kernels take matrices"
    if bits > MOST_BITS:
        return f"a code and its cluster id have {bits} bits, and kernels take up to {MOST_BITS}"
    return "" if product_kernel() else "there are no compiled kernels, or they are switched off"


@cache
def _packed(numbers: Numbers, scale_kind: Kind) -> Any:
    rows, cols, bits, clusters, additive, id_bits, groups, group = numbers
    number = FLOATS[scale_kind].number
    return _native.Packed(rows, cols, bits, clusters, bool(additive), id_bits, number, groups, group)


def multiply(  # noqa: PLR0913, PLR0917 - one call, with what it needs
    numbers: Numbers,
    scale_kind: Kind,
    planes: list[int],
    kind: Kind,
    tokens: int,
    x: int,
    bias: int,
    out: int,
    threads: int,
) -> None:
    """Write `x @ weight.T + bias`.

    Args:
        numbers: those of the weight.
        scale_kind: the floats of its row_scales.
        planes: addresses of `PLANES`, 0 for those that are not there.
        kind: the floats of x, bias and out.
        tokens: rows of x.
        x: address of `[tokens, cols]`.
        bias: address of `[rows]`, or 0.
        out: address of `[tokens, rows]`.
        threads: how many may work.

    LAW: a token's result has the same bits in every batch and for any number of threads. For fp32 and fp16 it differs from a
    float32 product with the decoded weight by rounding alone; for bf16, levels may be rounded to bf16.
    """
    _native.linear(_packed(numbers, scale_kind), *planes, x, FLOATS[kind].number, tokens, bias, out, threads)


def decode_rows(  # noqa: PLR0913, PLR0917 - one call, with what it needs
    numbers: Numbers, scale_kind: Kind, planes: list[int], first: int, count: int, out: int, threads: int
) -> None:
    """Write some rows of a weight in float32.

    Args:
        numbers: those of the weight.
        scale_kind: the floats of its row_scales.
        planes: as in `multiply`.
        first: the first row.
        count: how many.
        out: address of float32 `[count, cols]`.
        threads: how many may work.
    """
    _native.decode_rows(_packed(numbers, scale_kind), *planes, first, count, out, threads)
