"""`PackedWeight`: a module that takes the place of a weight Parameter and is read like one.

A layer keeps its class and its forward: `linear.weight` is a submodule whose buffers are the planes, so that the names in
a state_dict are those of the file (`X.weight.codes`), and PyTorch's operations find `__torch_function__` and get the
decoded weight. That holds for every layer class at once, also for subclasses with a forward of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from splitquant.core.products import most_tokens, product_kernel
from splitquant.core.spec import QuantSpec
from splitquant.core.split import SplitTensor
from splitquant.errors import TensorError
from splitquant.format.weight import Weight
from splitquant.torch.activations import DynamicInt8
from splitquant.torch.decode import LEVEL_PLANES, decode, decode_rows, unpacked_zero_points
from splitquant.torch.packing import KIND_OF_TORCH, TORCH_OF_KIND, planes_from, quantize_tensor
from splitquant.torch.products import can_multiply, linear, numbers_for, say_once

PLANES = ("codes", "clusters", *LEVEL_PLANES, "row_scale", "zero_points")
_TENSOR_NAMES = frozenset(name for name in dir(torch.Tensor) if not name.startswith("_"))
# The products of layers, and which argument is the input: weight and bias follow its dtype.
_INPUT_OF_LAYER: dict[Callable[..., Any], int] = {
    functional.linear: 0,
    functional.conv1d: 0,
    functional.conv2d: 0,
    functional.conv3d: 0,
    functional.conv_transpose1d: 0,
    functional.conv_transpose2d: 0,
    functional.conv_transpose3d: 0,
    torch.addmm: 1,
}
# In these the weight alone does; everywhere else it has the dtype of the layer.
_PRODUCTS = frozenset(
    {*_INPUT_OF_LAYER, functional.bilinear, torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__}
)


class PackedWeight(nn.Module):
    """A quantized weight, packed in memory and decoded anew wherever it is used (an embedding: only the rows looked up).

    Buffers: `codes`, `clusters` (k > 1), `scale` and `offset` (or `levels`; neither with `zero_points` of rows' own), `row_scale`
    (not for tensor granularity), as in docs/format.md; a cast of the model leaves their dtypes alone and changes `dtype`, in which the weight shows itself.
    A state_dict also holds `shape`, int64 `[ndim]`.
    activations: the grid on which a layer's input is put before the product with this weight (None: no grid).
    """

    activations: DynamicInt8 | None = None

    codes: torch.Tensor
    scale: torch.Tensor  # and offset: not there where levels are free, and where rows have zero_points
    offset: torch.Tensor

    def __init__(self, planes: dict[str, torch.Tensor], packing: Weight, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        for name in PLANES:
            if name in planes:
                self.register_buffer(name, planes[name])
        self.packing = packing
        self._shape = torch.tensor(packing.shape, dtype=torch.int64, device="cpu")  # one, so that tied names share it
        self._dtype = TORCH_OF_KIND[packing.kind] if dtype is None else dtype
        self._numbers, self._most_tokens = numbers_for(packing), most_tokens()
        self._is_hf_initialized = True  # transformers must not draw random numbers into it

    @classmethod
    def from_tensor(
        cls, tensor: torch.Tensor, spec: QuantSpec, axis: int = 0, dtype: torch.dtype | None = None
    ) -> PackedWeight:
        """Quantize a float tensor; TensorError for NaN, infinity or a dtype that is no float."""
        split = quantize_tensor(tensor, spec, axis)
        packed = cls.from_split(split, tensor.dtype, dtype)
        packed.to(tensor.device)
        return packed

    @classmethod
    def from_split(cls, split: SplitTensor, source: torch.dtype, dtype: torch.dtype | None = None) -> PackedWeight:
        """Wrap a SplitTensor that was made from a tensor of dtype `source`."""
        packing = Weight(split.shape, split.axis, split.spec, KIND_OF_TORCH.get(source, "fp32"))
        return cls(planes_from(split), packing, dtype)

    def planes(self) -> dict[str, torch.Tensor]:
        """The planes by name, `shape` included."""
        planes = {name: plane for name, plane in self._buffers.items() if plane is not None}
        return {**planes, "shape": self._shape}

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight that the codes stand for, in the stored dtype and then in `dtype` (None: `self.dtype`)."""
        return decode(self._planes(), self.packing, self._dtype if dtype is None else dtype)

    def zero_point(self) -> torch.Tensor:
        """The code that means zero, int64 `[k]`, or `[rows, groups]` where every row or group has its own.

        Raises:
            TensorError: where the grids need not hold zero (fused and asymmetric; lloyd), and for stacked matrices.
        """
        spec = self.packing.spec
        if not spec.zero_in_grid:
            raise TensorError(f"a {spec} weight has no zero_point: its grids need not hold zero")
        if spec.own_zero_points:
            if self.packing.stack:
                raise TensorError("holds several matrices; ask the planes of each for its zero_points")
            return unpacked_zero_points(self._planes(), spec)
        if spec.symmetric:
            return torch.full_like(self.scale, spec.width.symmetric_zero, dtype=torch.int64)
        return torch.where(self.scale > 0, -self.offset / self.scale, 0.0).to(torch.int64)

    def forward(self) -> torch.Tensor:
        """The decoded weight."""
        return self.dequantize()

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of an embedding, `[*ids.shape, cols]`; only these are decoded."""
        flat = ids.reshape(-1).to(self.codes.device)
        per_row = {
            name: plane
            for name, plane in self._planes().items()
            if name in ("codes", "clusters", "row_scale", "zero_points")
        }
        rows = {name: plane.index_select(0, flat) for name, plane in per_row.items()}
        return decode_rows({**self._planes(), **rows}, self.packing, self._dtype).reshape(
            *ids.shape, self.packing.geometry.cols
        )

    def same_planes(self, other: PackedWeight) -> bool:
        """Whether both are the same weight, bit for bit."""
        mine, theirs = self.planes(), other.planes()
        return (
            self.packing == other.packing
            and mine.keys() == theirs.keys()
            and all(torch.equal(mine[name], theirs[name]) for name in mine)
        )

    # How a tensor is asked

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the weight shows itself."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the planes are."""
        return self.codes.device

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return torch.Size(self.packing.shape)

    @property
    def data(self) -> torch.Tensor:
        """The decoded weight; writing into it changes nothing here."""
        return self.dequantize()

    requires_grad = False
    grad = None

    def size(self, dim: int | None = None) -> torch.Size | int:
        """The shape, or one number of it."""
        return self.shape if dim is None else self.shape[dim]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """To a device: this module, moved. To a dtype: the decoded weight, as a tensor gives; this module stays as it is."""
        asked: tuple[Any, ...] = torch._C._nn._parse_to(*args, **kwargs)  # noqa: SLF001 - as Module.to itself does
        device, dtype = asked[:2]
        if dtype is None:
            return super().to(*args, **kwargs)
        return self.dequantize(dtype).to(self.device if device is None else device)

    def float(self) -> Any:
        """The decoded weight in float32."""
        return self.dequantize(torch.float32)

    def double(self) -> Any:
        """The decoded weight in float64."""
        return self.dequantize(torch.float64)

    def half(self) -> Any:
        """The decoded weight in float16."""
        return self.dequantize(torch.float16)

    def bfloat16(self) -> Any:
        """The decoded weight in bfloat16."""
        return self.dequantize(torch.bfloat16)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.dequantize()[index]

    def __len__(self) -> int:
        return self.packing.shape[0]

    def __matmul__(self, other: torch.Tensor) -> torch.Tensor:
        return self.dequantize(other.dtype) @ other

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _TENSOR_NAMES and "codes" in self.__dict__.get("_buffers", {}):
                return getattr(self.dequantize(), name)
            raise

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of PyTorch on the decoded weight."""
        del types
        kwargs = kwargs or {}
        if func is functional.embedding:
            found = _embedding(*args, **kwargs)
            if found is not None:
                return found
        place = _INPUT_OF_LAYER.get(func)
        if place is not None and place < len(args) and _is_float_tensor(args[place]):
            return _layer(func, args, kwargs, place)
        dtype = None
        if func in _PRODUCTS:
            floats = [leaf.dtype for leaf in tree_leaves((args, kwargs)) if _is_float_tensor(leaf)]
            dtype = floats[0] if floats else None

        def decoded(leaf: Any) -> Any:
            return leaf.dequantize(dtype) if isinstance(leaf, PackedWeight) else leaf

        return func(*tree_map(decoded, args), **tree_map(decoded, kwargs))

    # How a module is moved, stored and printed

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedWeight:
        del recurse  # there are no submodules
        probe = fn(torch.empty(0, dtype=self._dtype, device=self.device))
        if probe.is_floating_point():
            self._dtype = probe.dtype
        for name, plane in self._buffers.items():
            if plane is not None:
                moved = fn(plane)
                # Levels and row scales are numbers of the file: a cast of the model must not round them.
                self._buffers[name] = moved if moved.dtype == plane.dtype else plane.to(moved.device)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._numbers, self._most_tokens = (
            numbers_for(self.packing),
            most_tokens(),
        )  # it may have been pickled on a machine with other kernels

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "shape"] = self._shape

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, plane in self._planes().items():
            given = state_dict.get(prefix + name)
            if given is not None and given.dtype != plane.dtype:  # it would be rounded in silence
                error_msgs.append(f"{prefix}{name} is {given.dtype}; expected {plane.dtype}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = prefix + "shape"
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if key not in state_dict:
            if strict:
                missing_keys.append(key)
        elif tuple(state_dict[key].tolist()) != self.packing.shape:
            error_msgs.append(f"{key} is {state_dict[key].tolist()}; expected {list(self.packing.shape)}")

    def extra_repr(self) -> str:
        inputs = "" if self.activations is None else f", activations {self.activations}"
        product = "decoded" if self._numbers is None else product_kernel()
        return f"{list(self.packing.shape)}, {self.packing.spec}, {self._dtype}{inputs}, product {product}"

    def _planes(self) -> dict[str, torch.Tensor]:
        return {name: plane for name, plane in self._buffers.items() if plane is not None}


def _decoding(name: str) -> Callable[..., Any]:
    def operator(self: PackedWeight, *others: Any) -> Any:
        return getattr(self.dequantize(), name)(*others)

    operator.__name__ = name
    return operator


# Arithmetic on the decoded weight, for layers that scale or combine theirs in forward. Not `==`: modules are compared and
# hashed by identity.
for _name in (
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__pow__"),
    *("__neg__", "__abs__", "__lt__", "__le__", "__gt__", "__ge__"),
):
    setattr(PackedWeight, _name, _decoding(_name))


def _is_float_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _layer(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> Any:
    """The product of a layer: input, weight and bias in one dtype, which is float32 for an input on a grid."""
    x: torch.Tensor = args[place]
    packed = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, PackedWeight))
    grid = packed.activations
    ready = x if grid is None else grid(x, len(packed.packing.shape))

    def follows(leaf: Any) -> Any:
        if isinstance(leaf, PackedWeight):
            return leaf.dequantize(ready.dtype)
        return leaf.to(ready.dtype) if _is_float_tensor(leaf) else leaf

    args = (*args[:place], ready, *args[place + 1 :])
    # The law of a grid is about the weight as it is stored, which kernels do not round to the last bit.
    out = _by_kernel(func, args, kwargs, packed, ready) if grid is None else None
    if out is None:
        out = func(*tree_map(follows, args), **tree_map(follows, kwargs))
    return out if grid is None else out.to(x.dtype)


def _by_kernel(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], packed: PackedWeight, x: torch.Tensor
) -> torch.Tensor | None:
    """The product by a compiled kernel, without a decoded weight; None where there is none for it."""
    if func is functional.linear:
        axis, weight, bias = 0, *(_argument(args, kwargs, at, name) for at, name in ((1, "weight"), (2, "bias")))
    elif func is torch.addmm and not kwargs and len(args) == 3:
        axis, weight, bias = 1, args[2], args[0]
    else:
        return None
    if not can_multiply(x) or (bias is not None and not (_is_float_tensor(bias) and can_multiply(bias))):
        return None
    numbers = packed._numbers  # noqa: SLF001 - of this module's own class
    if numbers is None:
        say_once(packed.packing)
        return None
    ours = weight is packed and packed.packing.axis == axis and packed.codes.device.type == "cpu"
    fits = x.shape[-1:] == (numbers.cols,) and (axis == 0 or x.ndim == 2)
    if not ours or not fits or (bias is not None and bias.shape != (numbers.rows,)):
        return None
    if x.numel() > packed._most_tokens * numbers.cols:  # noqa: SLF001
        return None
    return linear(x, packed._planes(), numbers, None if bias is None else bias.to(x.dtype))  # noqa: SLF001


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if place < len(args) else kwargs.get(name)


def _embedding(
    ids: Any, weight: Any, padding_idx: int | None = None, max_norm: float | None = None, *_: Any, **__: Any
) -> torch.Tensor | None:
    """A look-up that decodes only its rows; None where the whole weight is less work or is needed."""
    del padding_idx  # it matters to gradients only
    if not isinstance(weight, PackedWeight) or not isinstance(ids, torch.Tensor):
        return None
    if max_norm is not None or weight.packing.axis != 0 or ids.numel() > weight.packing.shape[0]:
        return None
    return weight.lookup(ids)
