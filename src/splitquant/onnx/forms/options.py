"""How weights are to be stored in a model, and which specs can be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from splitquant.core.spec import QuantSpec
from splitquant.core.strategies import Layout, facts_of
from splitquant.errors import SpecError
from splitquant.plan.explicit import explicit_spec
from splitquant.plan.layers import Layer
from splitquant.plan.targets import spec_for, target_of

Format = Literal["float", "qdq", "matmulnbits"]
FORMATS = ("qdq", "matmulnbits")
Activations = Literal["int8-tensor", "int8-token-sym"]
_FORMAT_OF: dict[str, str] = {"int8-tensor": "qdq", "int8-token-sym": "matmulnbits"}

INT8_ACTIVATIONS, FLOAT_ACTIVATIONS = 4, 1  # of the accuracy levels of MatMulNBits

BLOCK_SIZE = 128
GROUP_SIZE = 32
_OF_OPENVINO = ("openvino", "intel-npu")
_READ_ALL = (None, "linear-asym", "linear-sym", "onnxruntime", *_OF_OPENVINO)
"""Targets whose tools read ONNX Runtime's MatMulNBits, and products of integers with a grid laid in every run."""

TABLES = {"symmetric": True}
"""What embeddings are always; see `checked_embeddings`."""


def usual_spec(storage: OnnxForm | None = None, **fixed: Any) -> QuantSpec:
    """The spec of some fixed fields, and for the rest what is the best deal in ONNX Runtime and OpenVINO.

    That is one INT8 layer with a grid per output channel: smaller than two INT4 parts, several times faster and nearer to the
    float model (docs/results/onnx.md). Of 4 bits and fewer, groups of 32 weights: MatMul takes them without a detour; products
    of integers take a grid per channel. Several parts are made where somebody asks for them.
    """
    if "strategy" in fixed or "layout" in fixed:
        return explicit_spec(fixed, layout=_layout_for(fixed.get("strategy")))
    if (fixed.get("clusters") or 1) != 1:
        return spec_for("linear-asym", **fixed)
    bits = fixed.get("bits", 8)
    in_groups = bits in (2, 3, 4) and (storage is None or storage.activations != "int8-tensor")
    granularity = f"group:{GROUP_SIZE}" if in_groups else "channel"
    return explicit_spec(fixed, bits=8, clusters=1, layout="parallel", granularity=granularity)


def split_spec(target: str | None, **fixed: Any) -> QuantSpec:
    """The spec of a split whose float parts another tool quantizes: the target's, or that of the fixed fields."""
    if target is not None:
        return spec_for(target, refit=True, **fixed)
    return explicit_spec({"polish": False, **fixed}, layout=_layout_for(fixed.get("strategy")))


def _layout_for(strategy: object) -> Layout:
    """Integer layers; of free levels, which have no other layout, `fused`: `OnnxForm.checked` says why those cannot be stored."""
    return "fused" if facts_of(strategy).free_levels else "parallel"


DEFAULT_SPEC = usual_spec()
"""INT8, a scale and a zero point per output channel."""

SPLIT_SPEC = QuantSpec(bits=4, layout="parallel", polish=False)
"""Of `split`: three segments of values per output channel, for whatever quantizer comes."""


@dataclass(frozen=True, slots=True)
class OnnxForm:
    """How weights are stored in a model.

    Args:
        format: `float` (split only), `qdq` (DequantizeLinear in standard operators), `matmulnbits` (ONNX Runtime's operator
            for MatMul and Gemm, QDQ for the rest).
        block_size: of MatMulNBits, for granularity tensor and channel; None: `BLOCK_SIZE`.
        accuracy_level: of MatMulNBits (4: int8 activations, the fast kernels; 1: float activations); None: 4, and 1 for
            weights of float16, see `form.form_of`.
        full_range: of residual float parts with symmetric grids: the quantizer to come uses all codes (a step of absmax / 8
            at 4 bits, with a signed scale), not the narrow range (absmax / 7).
        activations: what is multiplied with the weights; None: floats (and in MatMulNBits what `accuracy_level` says).

            | activations      | formats     | made by                                                                      |
            |------------------|-------------|------------------------------------------------------------------------------|
            | `int8-tensor`    | qdq         | DynamicQuantizeLinear, then MatMulInteger or ConvInteger: standard operators |
            | `int8-token-sym` | matmulnbits | MatMulNBits with accuracy_level 4: a grid per block_size values of a row     |

        target: what is to run the model, a name of `plan.targets.TARGETS`; None: whatever reads ONNX.

    Raises:
        SpecError: for what ONNX cannot say, or the target cannot run.
    """

    format: Format = "qdq"
    block_size: int | None = None
    accuracy_level: int | None = None
    full_range: bool = False
    activations: Activations | None = None
    target: str | None = None

    @property
    def reads_whole_groups_alone(self) -> bool:
        """Whether the target refuses weights whose rows do not end with a group."""
        return self.target in _OF_OPENVINO

    @property
    def fails_on_one_zero_point(self) -> bool:
        """Whether the target fails on a convolution of 4 bits all of whose channels have one zero point, behind a Mul or Div.

        OpenVINO 2026.4 then fuses the factor into a weight of another shape.
        """
        return self.target in _OF_OPENVINO

    def __post_init__(self) -> None:
        if self.format not in ("float", *FORMATS):
            raise SpecError(f"format is {self.format!r}; expected one of {', '.join(FORMATS)}")
        if self.block_size is not None and not _is_block(self.block_size):
            raise SpecError(f"block_size is {self.block_size}; expected a power of two from 16 to 256")
        if self.accuracy_level not in (None, *range(5)):
            raise SpecError(f"accuracy_level is {self.accuracy_level}; expected 0 to 4")
        given = {"block_size": self.block_size, "accuracy_level": self.accuracy_level}
        said = " and ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        if self.format != "matmulnbits" and said:
            raise SpecError(
                f"{said} in the format {self.format}; they are of matmulnbits (--format matmulnbits): leave them out, or "
                "set a granularity"
            )
        if self.target not in _READ_ALL and (self.format == "matmulnbits" or self.activations is not None):
            given_ = self.activations and f"activations {self.activations}"
            raise target_of(str(self.target)).refusal(
                given_ or "MatMulNBits", "the format qdq (--format qdq) with float activations in ONNX models"
            )
        if self.activations is None:
            return
        if self.format != _FORMAT_OF.get(self.activations):
            takes = ", ".join(f"{name} in the format {form}" for name, form in _FORMAT_OF.items())
            raise SpecError(f"activations is {self.activations!r} in the format {self.format}; ONNX takes {takes}")
        if self.activations == "int8-token-sym" and self.accuracy_level not in (None, INT8_ACTIVATIONS):
            raise SpecError(
                f"activations is int8-token-sym with accuracy_level {self.accuracy_level}; that is {INT8_ACTIVATIONS}: leave it out"
            )

    def checked_for(self, layer: Layer, spec: QuantSpec) -> QuantSpec:
        """The spec of a layer as it is meant here; SpecError for what cannot be stored."""
        return checked_embeddings(spec) if layer.role == "embedding" else self.checked(spec)

    def checked(self, spec: QuantSpec) -> QuantSpec:
        """The spec of linear and convolution weights as it is meant here; SpecError for what cannot be stored."""
        if spec.facts.free_levels:
            raise SpecError(
                "the strategy is lloyd, whose levels are free, and ONNX has no operator that reads packed indices into a table: "
                "use residual, magnitude or min_error"
            )
        if self.format == "float":  # a quantizer downstream takes the range of each part, which fitted cells blur
            spec = replace(spec, polish=False)
        if not spec.zero_in_grid:
            raise SpecError(
                f"the spec is {spec}; a layer split into parts needs zero in every grid, and ONNX has no operator for "
                "fused clusters: use layout='parallel' (--layout parallel)"
            )
        if self.full_range and not (self.format == "float" and spec.facts.additive and spec.symmetric):
            raise SpecError(
                f"full_range with {spec} in the format {self.format}; it is of split with the strategy residual and "
                "symmetric grids"
            )
        group = spec.granularity
        if group.kind == "group" and self.format == "matmulnbits" and not _is_block(group.size):
            raise SpecError(f"granularity is {spec.granularity}; MatMulNBits takes powers of two from 16 to 256")
        if group.kind == "group" and self.activations == "int8-tensor":
            raise SpecError(
                f"activations is int8-tensor with granularity {spec.granularity}; integer products take a scale per "
                "channel or tensor"
            )
        return spec


def checked_embeddings(spec: QuantSpec) -> QuantSpec:
    """The spec of tables that Gather reads; SpecError for what cannot be stored."""
    if not (spec.clusters == 1 and spec.symmetric):
        raise SpecError(f"embeddings is {spec}; expected a plain symmetric spec, such as 8 bits per channel")
    if spec.granularity.kind == "group":
        raise SpecError(f"embeddings is {spec}; expected granularity channel or tensor")
    return spec


def _is_block(size: int) -> bool:
    return isinstance(size, int) and 16 <= size <= 256 and size & (size - 1) == 0
