"""The forms a weight can take in a model: which tensors it becomes, with their types and shapes, before any data is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from onnx import TensorProto

from splitquant.core.floats import Kind
from splitquant.core.spec import QuantSpec
from splitquant.onnx.dtypes import DATA_TYPE_OF, nbytes_of
from splitquant.onnx.forms.options import BLOCK_SIZE, FLOAT_ACTIVATIONS, INT8_ACTIVATIONS, OnnxForm
from splitquant.onnx.graph.operands import Operand

FormName = Literal["float", "QDQ", "Integer", "MatMulNBits", "Gather"]
UNSIGNED = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}
SIGNED = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor to be written: the suffix of its name, its element type and its shape."""

    suffix: str
    data_type: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes it takes."""
        return nbytes_of(self.data_type, math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Form:
    """How one weight is stored.

    kind: of the weight as its node sees it. rows: output channels; cols: weights of each.
    stored_bits: 2, 4 or 8, in which the codes of `spec.bits` are stored. block: MatMulNBits' block_size, or 0.
    scale_type: element type of the scales; where it is not the weight's own, a Cast follows DequantizeLinear.
    full_range: of residual float parts, see `OnnxForm`.
    """

    name: FormName
    operand: Operand
    spec: QuantSpec
    kind: Kind
    stored_bits: int
    block: int
    scale_type: int
    accuracy_level: int = 0
    full_range: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight as its node sees it."""
        return self.operand.weight.shape

    @property
    def rows(self) -> int:
        """How many output channels the weight has."""
        return self.shape[self.operand.axis]

    @property
    def cols(self) -> int:
        """How many weights an output channel has."""
        return math.prod(self.shape) // self.rows

    @property
    def parts(self) -> int:
        """How many branches the node becomes."""
        return self.spec.clusters

    @property
    def signed(self) -> bool:
        """Whether the codes are signed numbers around zero, without a zero_point."""
        return self.name == "Gather" or (self.name == "QDQ" and self.spec.symmetric)

    @property
    def zero_point_given(self) -> bool:
        """Whether zero_points are written."""
        if self.name == "MatMulNBits":
            return not (self.spec.symmetric and self.stored_bits == self.spec.bits)
        return self.name == "Integer" or (self.name == "QDQ" and not self.signed)

    @property
    def code_type(self) -> int:
        """The element type of the codes."""
        if self.name == "float":
            return DATA_TYPE_OF[self.kind]
        if self.name == "MatMulNBits":
            return TensorProto.UINT8
        return (SIGNED if self.signed else UNSIGNED)[self.stored_bits]

    @property
    def blocked(self) -> bool:
        """Whether scales belong to groups of a row."""
        return self.spec.granularity.kind == "group"

    @property
    def blocks(self) -> int:
        """How many scales a row has in MatMulNBits."""
        return -(-self.cols // self.block)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The tensors of one part: the weight, then its scale and zero_point where there are such."""
        if self.name == "float":
            return (Piece("", self.code_type, self.shape),)
        if self.name == "MatMulNBits":
            codes = (self.rows, self.blocks, self.block * self.stored_bits // 8)
            zeros = (self.rows, -(-self.blocks * self.stored_bits // 8))
            pieces = [
                Piece("", TensorProto.UINT8, codes),
                Piece(".scale", self.scale_type, (self.rows, self.blocks)),
                Piece(".zero_point", TensorProto.UINT8, zeros),
            ]
        else:
            pieces = [
                Piece("", self.code_type, self.shape),
                Piece(".scale", self.scale_type, self.scale_shape),
                Piece(".zero_point", self.code_type, self.scale_shape)
                if self.name == "QDQ"
                else Piece(".zero_point", TensorProto.UINT8, ()),
            ]
        return tuple(pieces if self.zero_point_given else pieces[:2])

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """The shape of scales: a number, one per channel, or one per group, in the axes of the weight."""
        if self.spec.granularity.kind == "tensor":
            return ()
        if self.name == "Gather":
            return (self.rows, 1)
        if self.name == "Integer" and self.operand.kind == "conv":
            return (self.rows, *[1] * (len(self.shape) - 2))
        if not self.blocked:
            return (self.rows,)
        assert self.operand.reduction is not None
        shape = list(self.shape)
        shape[self.operand.reduction] = self.spec.groups(self.cols)
        return tuple(shape)

    @property
    def stored_bytes(self) -> int:
        """The bytes of all parts."""
        return self.parts * sum(piece.nbytes for piece in self.pieces)


def form_of(
    operand: Operand, kind: Kind, spec: QuantSpec, storage: OnnxForm, *, wide: bool = False
) -> tuple[Form | None, str]:
    """The form in which a weight is stored, and a remark where it is not the plain one asked for.

    Args:
        operand: the weight, as its node sees it.
        kind: its float.
        spec: by which it is quantized; that of an embedding is plain and symmetric.
        storage: what was asked for.
        wide: whether float16 cannot hold its scales.

    Returns:
        None, with the reason, where there is no such form.
    """
    if operand.kind == "embedding":
        return _embedding(operand, kind, spec)
    spec, remark = as_possible(operand, spec, storage)
    if storage.format == "float":
        return Form("float", operand, spec, kind, 0, 0, TensorProto.UNDEFINED, full_range=storage.full_range), remark
    stored_bits = _stored_bits(spec)
    if storage.format == "matmulnbits":
        why_not = _not_nbits(operand, kind)
        if not why_not and wide:
            return None, "its scales are too small for float16, and MatMulNBits takes no others here"
        if not why_not:
            group = spec.granularity
            level, said = _level(kind, storage)
            remark = "; ".join(filter(None, (remark, said)))
            block = group.size if group.kind == "group" else _block(operand, storage.block_size or BLOCK_SIZE)
            return Form("MatMulNBits", operand, spec, kind, stored_bits, block, DATA_TYPE_OF[kind], level), remark
        remark = "; ".join(filter(None, (remark, why_not)))
    if storage.activations == "int8-tensor":
        why_not = _not_integer(operand)
        if not why_not:
            # Integer products take one zero_point for all channels.
            spec = replace(spec, zero_points="shared")
            return Form("Integer", operand, spec, kind, stored_bits, 0, TensorProto.FLOAT), remark
        remark = "; ".join(filter(None, (remark, f"float activations, since {why_not}")))
    if stored_bits == 2 and operand.axis > 0 and math.prod(operand.weight.shape[operand.axis :]) % 4:
        # ONNX Runtime 1.32 fuses such a MatMul into MatMulNBits and then reads the codes at the wrong places.
        stored_bits, remark = (
            4,
            "; ".join(filter(None, (remark, "2-bit rows that end inside a byte are stored as 4-bit"))),
        )
    half = kind == "fp16" and stored_bits <= 4 and not wide
    if wide:
        remark = "; ".join(filter(None, (remark, "its scales are too small for float16: float32 and a Cast")))
    scale_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    return Form("QDQ", operand, spec, kind, stored_bits, 0, scale_type), remark


def _level(kind: Kind, storage: OnnxForm) -> tuple[int, str]:
    """The accuracy_level of MatMulNBits, and a remark where it is the one of INT8 activations for a float16 weight.

    ONNX Runtime 1.32 computes zeros then where a session optimises less than it does by default.
    """
    asked = storage.accuracy_level
    if asked is None and storage.activations is not None:
        asked = INT8_ACTIVATIONS
    if kind != "fp16":
        return INT8_ACTIVATIONS if asked is None else asked, ""
    if asked != INT8_ACTIVATIONS:
        return FLOAT_ACTIVATIONS if asked is None else asked, ""
    return (
        asked,
        "with float16 the INT8 activations of ONNX Runtime are wrong unless all graph optimisations are enabled",
    )


def _embedding(operand: Operand, kind: Kind, spec: QuantSpec) -> tuple[Form, str]:
    stored_bits = _stored_bits(spec)
    if stored_bits == 8:
        return Form("Gather", operand, spec, kind, 8, 0, TensorProto.FLOAT), ""
    # Gather takes no types below 8 bits, so that the table is dequantized first; runtimes that cannot fuse the two do so
    # in every run.
    return Form("QDQ", operand, spec, kind, stored_bits, 0, TensorProto.FLOAT), "DequantizeLinear before Gather"


def _stored_bits(spec: QuantSpec) -> int:
    return next(bits for bits in (2, 4, 8) if spec.bits <= bits)


def as_possible(operand: Operand, spec: QuantSpec, storage: OnnxForm) -> tuple[QuantSpec, str]:
    """The spec that a weight can have, and why it is another one than was asked for ("": it is that)."""
    plain = spec.clusters == 1 and not spec.symmetric and _stored_bits(spec) == 4
    if spec.granularity.kind == "group":
        if operand.reduction is None or len(operand.weight.shape) != 2:
            spec, said = replace(spec, granularity="channel"), "groups need a 2-D weight: one scale per channel"
        elif storage.reads_whole_groups_alone and _is_cut(operand, spec):
            why = f"{storage.target} takes no groups of {spec.granularity.size} in rows of another multiple"
            spec, said = replace(spec, granularity="channel"), f"{why}: one scale per channel"
        else:
            said = ""
    else:
        said = ""
    if plain and operand.kind == "conv" and storage.fails_on_one_zero_point:
        more = "symmetric, since OpenVINO fails on one zero point for all channels"
        spec, said = replace(spec, symmetric=True), "; ".join(filter(None, (said, more)))
    return spec, said


def _is_cut(operand: Operand, spec: QuantSpec) -> bool:
    """Whether the last group of a row has fewer weights than the others."""
    assert operand.reduction is not None
    return bool(operand.weight.shape[operand.reduction] % spec.granularity.size)


def _not_integer(operand: Operand) -> str:
    if operand.kind == "conv_transpose":
        return "ONNX has no integer ConvTranspose"
    if operand.kind == "recurrent":
        return "ONNX has no integer recurrent layers"
    return "" if operand.slot == 1 else "the weight is the first input"


def _not_nbits(operand: Operand, kind: Kind) -> str:
    if operand.kind not in ("matmul", "gemm"):
        return "MatMulNBits is for MatMul and Gemm"
    if operand.slot != 1 or len(operand.weight.shape) != 2:
        return "MatMulNBits takes a 2-D weight as the second input"
    return "MatMulNBits has no bf16 kernel" if kind == "bf16" else ""


def _block(operand: Operand, largest: int) -> int:
    """The block_size of MatMulNBits: the largest allowed, or the first power of two that holds a whole row."""
    cols = operand.weight.shape[0]
    return min(largest, max(16, 1 << (cols - 1).bit_length()))
