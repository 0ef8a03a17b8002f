"""PyTorch adapter: quantized weights that stay packed in memory and decode themselves where they are used."""

from splitquant.torch.packed import PackedWeight

__all__ = ["PackedWeight"]
