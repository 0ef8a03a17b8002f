"""How weights are to be stored: what ONNX cannot say is refused before anything is read."""

from __future__ import annotations

import pytest

import splitquant.onnx as sqo
from builders.onnx_models import (
    matmul,
)
from splitquant import QuantSpec
from splitquant.errors import SpecError


def test_options_that_onnx_cannot_say():
    """Fused clusters, odd block sizes and unknown formats are refused before anything is read."""
    with pytest.raises(SpecError, match="layout='parallel'"):
        sqo.quantize(matmul(), spec=QuantSpec())
    with pytest.raises(SpecError, match="power of two"):
        sqo.quantize(matmul(), block_size=48)
    with pytest.raises(SpecError, match="expected one of qdq, matmulnbits"):
        sqo.quantize(matmul(), format="gguf")
    with pytest.raises(SpecError, match="powers of two"):
        sqo.quantize(matmul(), spec=QuantSpec(layout="parallel", granularity="group:24"), format="matmulnbits")


def test_options_of_matmulnbits_elsewhere():
    """What only MatMulNBits has is refused in QDQ; so is a block size that is no number."""
    for said in ({"block_size": 32}, {"accuracy_level": 1}):
        with pytest.raises(SpecError, match="they are of matmulnbits"):
            sqo.quantize(matmul(), **said)
    with pytest.raises(SpecError, match="power of two"):
        sqo.quantize(matmul(), format="matmulnbits", block_size="32")


def test_what_onnx_cannot_say():
    """Free levels, and a full range where there is no residual part to lie on it."""
    with pytest.raises(SpecError, match=r"lloyd.*no operator.*use residual"):
        sqo.quantize(matmul(), spec=QuantSpec(4, 2, "lloyd"))
    with pytest.raises(SpecError, match=r"full_range.*residual and symmetric"):
        sqo.split(matmul(), spec=QuantSpec(4, 2, "residual"), full_range=True)


def test_activations_of_matmulnbits():
    """int8-token-sym is accuracy_level 4; what cannot be is an error that says what can."""
    done = sqo.quantize(matmul(), format="matmulnbits", activations="int8-token-sym").model
    assert {a.i for node in done.graph.node for a in node.attribute if a.name == "accuracy_level"} == {4}
    with pytest.raises(SpecError, match="leave it out"):
        sqo.quantize(matmul(), format="matmulnbits", activations="int8-token-sym", accuracy_level=1)
    with pytest.raises(SpecError, match=r"int8-tensor in the format qdq, int8-token-sym in the format matmulnbits"):
        sqo.quantize(matmul(), activations="int8-token-sym")
    with pytest.raises(SpecError, match="channel or tensor"):
        sqo.quantize(matmul(), spec=QuantSpec(granularity="group:16", layout="parallel"), activations="int8-tensor")
