"""What the user asked for, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.targets import spec_for

Format = Literal["float", "qdq", "matmulnbits"]
FORMATS = ("qdq", "matmulnbits")
Activations = Literal["int8-tensor", "int8-token-sym"]
_FORMAT_OF: dict[str, str] = {"int8-tensor": "qdq", "int8-token-sym": "matmulnbits"}

INT8_ACTIVATIONS = 4  # of the accuracy levels of MatMulNBits

BLOCK_SIZE = 128


def usual_spec(**said: Any) -> QuantSpec:
    """What is best of `quantize` where neither strategy nor layout is said: that of integer layers, `linear-asym`.

    Codes of 5 to 7 bits are stored as INT8 (`Form.stored_bits`), so there two parts would be no gain, and one is made.
    """
    if said.get("bits") in (5, 6, 7):
        said = {"clusters": 1, **said}
    return spec_for("linear-asym", **said)


DEFAULT_SPEC = usual_spec()
"""Two INT4 parts per layer, the second of what the first leaves, a scale per output channel."""

SPLIT_SPEC = QuantSpec(bits=4, layout="parallel", polish=False)
"""Of `split`: three segments of values per output channel, for whatever quantizer comes."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is converted.

    spec: of linear and convolution weights; every grid must hold zero, since each weight is zero in all parts but one.
    embeddings: of tables that Gather reads (plain, symmetric; None keeps them).
    format: `float` (split only), `qdq` (DequantizeLinear in standard operators), `matmulnbits` (ONNX Runtime's operator
        for MatMul and Gemm, QDQ for the rest).
    include, exclude: names or glob patterns of nodes or weights; `include` wins over `exclude` and over the rules by kind. What
        would not get smaller stays all the same.
    block_size: of MatMulNBits, for granularity tensor and channel; accuracy_level: of MatMulNBits (4: int8 activations,
        the fast kernels; 1: float32 activations).
    full_range: of residual float parts with symmetric grids: the quantizer to come uses all codes (a step of absmax / 8 at
        4 bits, with a signed scale), not the narrow range (absmax / 7).
    activations: what is multiplied with the weights; None: floats (and in MatMulNBits what `accuracy_level` says).

        | activations      | formats     | made by                                                                        |
        |------------------|-------------|--------------------------------------------------------------------------------|
        | `int8-tensor`    | qdq         | DynamicQuantizeLinear, then MatMulInteger or ConvInteger: standard operators   |
        | `int8-token-sym` | matmulnbits | MatMulNBits with accuracy_level 4: a grid per block_size values of a row       |

    Raises SpecError for what ONNX cannot say.
    """

    spec: QuantSpec = DEFAULT_SPEC
    embeddings: QuantSpec | None = EMBEDDING
    format: Format = "qdq"
    include: tuple[str, ...] = field(default=())
    exclude: tuple[str, ...] = field(default=())
    block_size: int = BLOCK_SIZE
    accuracy_level: int = INT8_ACTIVATIONS
    full_range: bool = False
    activations: Activations | None = None

    def __post_init__(self) -> None:
        if self.format not in ("float", *FORMATS):
            raise SpecError(f"format is {self.format!r}; expected one of {', '.join(FORMATS)}")
        if self.spec.facts.free_levels:
            raise SpecError(
                f"the strategy is {self.spec.strategy}, whose levels are free, and ONNX has no operator that reads packed indices into a table: "
                "use residual, magnitude or min_error"
            )
        if self.format == "float":  # a quantizer downstream takes the range of each part, which fitted cells blur
            object.__setattr__(self, "spec", replace(self.spec, polish=False))
        if not self.spec.zero_in_grid:
            raise SpecError(
                f"the spec is {self.spec}; a layer split into parts needs zero in every grid, and ONNX has no operator for "
                "fused clusters: use layout='parallel' (--layout parallel)"
            )
        if self.embeddings is not None and not (self.embeddings.clusters == 1 and self.embeddings.symmetric):
            raise SpecError(
                f"embeddings is {self.embeddings}; expected a plain symmetric spec, such as 8 bits per channel"
            )
        if self.embeddings is not None and self.embeddings.granularity.kind == "group":
            raise SpecError(f"embeddings is {self.embeddings}; expected granularity channel or tensor")
        if not _is_block(self.block_size):
            raise SpecError(f"block_size is {self.block_size}; expected a power of two from 16 to 256")
        if self.accuracy_level not in range(5):
            raise SpecError(f"accuracy_level is {self.accuracy_level}; expected 0 to 4")
        if self.format != "matmulnbits" and (self.block_size, self.accuracy_level) != (BLOCK_SIZE, INT8_ACTIVATIONS):
            raise SpecError(
                f"block_size {self.block_size} and accuracy_level {self.accuracy_level} in the format {self.format}; they are "
                "of matmulnbits (--format matmulnbits): leave them out, or set a granularity"
            )
        self._check_activations()
        if self.full_range and not (self.format == "float" and self.spec.facts.additive and self.spec.symmetric):
            raise SpecError(
                f"full_range with {self.spec} in the format {self.format}; it is of split with the strategy residual and "
                "symmetric grids"
            )
        group = self.spec.granularity
        if group.kind == "group" and self.format == "matmulnbits" and not _is_block(group.size):
            raise SpecError(f"granularity is {self.spec.granularity}; MatMulNBits takes powers of two from 16 to 256")

    def _check_activations(self) -> None:
        if self.activations is None:
            return
        if self.format != _FORMAT_OF.get(self.activations):
            takes = ", ".join(f"{name} in the format {form}" for name, form in _FORMAT_OF.items())
            raise SpecError(f"activations is {self.activations!r} in the format {self.format}; ONNX takes {takes}")
        if self.activations == "int8-tensor" and self.spec.granularity.kind == "group":
            raise SpecError(
                f"activations is int8-tensor with granularity {self.spec.granularity}; integer products take a scale per "
                "channel or tensor"
            )
        if self.activations == "int8-token-sym" and self.accuracy_level != INT8_ACTIVATIONS:
            raise SpecError(
                f"activations is int8-token-sym with accuracy_level {self.accuracy_level}; that is {INT8_ACTIVATIONS}: leave it out"
            )

    def wants(self, names: tuple[str, ...]) -> tuple[bool, str]:
        """Whether the patterns let a layer with these names be converted, and the pattern that decided ("": none)."""
        for pattern in self.include:
            if any(_matches(name, pattern) for name in names):
                return True, f"included by {pattern!r}"
        for pattern in self.exclude:
            if any(_matches(name, pattern) for name in names):
                return False, f"excluded by {pattern!r}"
        return True, ""

    def check_patterns(self, names: set[str]) -> None:
        """SpecError for a pattern that no node and no weight has."""
        for pattern in (*self.include, *self.exclude):
            if not any(_matches(name, pattern) for name in names):
                raise SpecError(f"the pattern {pattern!r} matches none of the {len(names)} nodes and weights")


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # exporters make names such as `layers[0].weight`


def _is_block(size: int) -> bool:
    return isinstance(size, int) and 16 <= size <= 256 and size & (size - 1) == 0
