"""PyTorch: split, quantize and merge a model in memory; quantized weights stay packed and decode where they are used.

Example:
    >>> import splitquant.torch as sqt, torch
    >>> model, report = sqt.split(torch.nn.Sequential(torch.nn.Linear(8, 8)))
    >>> model, report = sqt.merge(model)
"""

from importlib.util import find_spec

from splitquant.errors import MissingExtraError

if find_spec("torch") is None:
    raise MissingExtraError("torch", "torch")

from splitquant.report.outcome import Outcome, Report
from splitquant.torch.activations import ACTIVATIONS, Activations, DynamicInt8
from splitquant.torch.convert import SPLIT, quantize, split
from splitquant.torch.merge import merge
from splitquant.torch.packed import PackedWeight
from splitquant.torch.replacing import Converted
from splitquant.torch.split_layer import SplitLayer

__all__ = [
    "ACTIVATIONS",
    "SPLIT",
    "Activations",
    "Converted",
    "DynamicInt8",
    "Outcome",
    "PackedWeight",
    "Report",
    "SplitLayer",
    "merge",
    "quantize",
    "split",
]
