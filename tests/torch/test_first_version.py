"""What the author's first version (github.com/jaewoosong/splitquant) gets wrong, ours does right.

It fails on Conv2d, drops layers whose bias is all zero, and has three parts by construction.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import splitquant.torch as sqt
from splitquant import PAPER, QuantSpec


def test_conv2d():
    """A convolution is split with its stride, padding and groups."""
    layer, x = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), torch.randn(2, 4, 9, 9)
    split, _ = sqt.split(layer)
    assert [(p.stride, p.padding, p.groups) for p in split.parts] == [((2, 2), (1, 1), 2)] * 3
    assert torch.allclose(split(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("convert", [sqt.split, sqt.quantize])
def test_a_bias_of_zeros(convert):
    """A layer whose bias is all zero is a layer like any other, and the bias is still there."""
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    layer.bias.data.zero_()
    converted, report = convert(nn.Sequential(layer))
    assert report["0"].outcome != "kept"
    assert torch.equal(converted[0].bias, layer.bias)
    assert torch.allclose(sqt.split(layer).model(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("k", range(1, 9))
def test_any_number_of_parts(k):
    """k is a number, not a structure: one to eight parts, in float and in codes."""
    layer, x = nn.Linear(64, 40), torch.randn(3, 64)
    split, _ = sqt.split(layer, QuantSpec(clusters=k))
    assert len(split.parts) == k
    assert torch.allclose(split(x), layer(x), atol=1e-5)
    quantized, _ = sqt.quantize(
        layer, QuantSpec(bits=3, clusters=k, layout="parallel")
    )  # 8 x INT4 is as large as float32
    assert len(quantized.parts) == k


def test_borders_are_at_least_as_good_as_those_of_kmeans():
    """The optimum is never worse than scikit-learn's KMeans on the same weights, by KMeans' own measure."""
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn is not installed")
    weight = torch.distributions.StudentT(3.0).sample((32, 24))
    fitted = cluster.KMeans(n_clusters=3, n_init="auto", random_state=0).fit(weight.reshape(-1, 1).double().numpy())
    layer = nn.Linear(24, 32)
    layer.weight.data = weight
    parts = [part.weight.detach().double().numpy() for part in sqt.split(layer, PAPER).model.parts]
    inertia = sum(float(((own := part[part != 0]) - own.mean()).__pow__(2).sum()) for part in parts)
    assert inertia <= fitted.inertia_ * (1 + 1e-6)
    assert sum(np.count_nonzero(part) for part in parts) == weight.numel()
