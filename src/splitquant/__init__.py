"""splitquant: plain linear low-bit quantization that works, by splitting each layer by value.

Importing this package loads no framework; it only arranges that transformers, if it is or will be imported, knows how to
read quantized folders.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from splitquant.hf.register import install as _install
from splitquant.version import __version__ as __version__

if TYPE_CHECKING:
    from splitquant.api import dequantize, dry_run, quantize, verify
    from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec
    from splitquant.core.split import SplitTensor, quantize_array
    from splitquant.errors import SplitQuantError
    from splitquant.hf.config import SplitQuantConfig
    from splitquant.hf.loader import load
    from splitquant.plan.targets import spec_for

_HOMES = {
    "EMBEDDING": "core.spec",
    "PAPER": "core.spec",
    "QuantSpec": "core.spec",
    "SplitQuantConfig": "hf.config",
    "SplitQuantError": "errors",
    "SplitTensor": "core.split",
    "dequantize": "api",
    "dry_run": "api",
    "load": "hf.loader",
    "quantize": "api",
    "quantize_array": "core.split",
    "spec_for": "plan.targets",
    "verify": "api",
}

__all__ = [
    "EMBEDDING",
    "PAPER",
    "QuantSpec",
    "SplitQuantConfig",
    "SplitQuantError",
    "SplitTensor",
    "dequantize",
    "dry_run",
    "load",
    "quantize",
    "quantize_array",
    "spec_for",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'splitquant' has no attribute {name!r}")
    value = getattr(import_module(f"splitquant.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


_install()
