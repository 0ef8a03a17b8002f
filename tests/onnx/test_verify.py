"""`verify` runs both models, measures the outputs, and counts which branches use a low-bit kernel."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from onnx import helper
from onnx_models import heavy, matmul, model, value

import splitquant.onnx as sqo
from splitquant import QuantSpec
from splitquant.errors import SourceError, SpecError, VerifyError


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:32"])
def test_all_branches_of_matmul_use_low_bit_kernels(form, bits, granularity):
    """2-D inputs, where a chain of Adds would become Gemm: all three branches end as MatMulNBits."""
    made = matmul(heavy((64, 256)))
    done = sqo.quantize(made, spec=QuantSpec(bits=bits, layout="parallel", granularity=granularity), format=form)
    if done.report.nodes[0].outcome == "kept":
        pytest.skip("would not get smaller")
    found = sqo.verify(made, done.model)
    assert (found.branches, found.in_kernels, found.dequantized) == (3, 3, 0)
    assert found.operators["Sum"] == 1


def test_gemm_becomes_matmul_branches():
    """A Gemm with a bias keeps the fast kernels too: it becomes MatMul branches, and the bias a term of the sum."""
    node = helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="fc", transB=1)
    made = model([node], [value("x", [4, 64])], [value("y", [4, 256])], {"W": heavy((256, 64)), "c": heavy((256,))})
    for form in ("qdq", "matmulnbits"):
        found = sqo.verify(made, sqo.quantize(made, format=form).model)
        assert (found.branches, found.in_kernels) == (3, 3)


def test_convolutions_are_counted_as_dequantized():
    """ONNX Runtime has no low-bit convolution on CPU: the count says so."""
    node = helper.make_node("Conv", ["x", "W"], ["y"], name="conv")
    made = model([node], [value("x", [1, 8, 9, 9])], [value("y", [1, 16, 7, 7])], {"W": heavy((16, 8, 3, 3))})
    found = sqo.verify(made, sqo.quantize(made).model)
    assert (found.branches, found.in_kernels, found.dequantized) == (3, 0, 3)


def test_given_inputs_and_bounds():
    """Given inputs are used, wrong ones are named, and a demanded SQNR that is not met is an error."""
    made = matmul()
    done = sqo.quantize(made)
    found = sqo.verify(made, done.model, {"x": heavy((2, 64))})
    assert found.outputs[0].name == "y"
    assert 15 < found.worst_sqnr_db < 60
    assert 0.98 < found.outputs[0].cosine <= 1
    with pytest.raises(SpecError, match=r"lack \['x'\] and have the unknown \['z'\]"):
        sqo.verify(made, done.model, {"z": heavy((2, 64))})
    with pytest.raises(VerifyError, match=r"output 'y' has an SQNR of .* at least 99.0 was asked for"):
        sqo.verify(made, done.model, min_sqnr=99)


def test_wrong_models_are_told():
    """Another output, a model the checker refuses, and one that does not run with the inputs."""
    other = matmul()
    other.graph.output[0].name = other.graph.node[0].output[0] = "z"
    with pytest.raises(VerifyError, match=r"has the outputs \['z'\]; the source has \['y'\]"):
        sqo.verify(matmul(), other)
    broken = matmul()
    broken.graph.node[0].input[1] = "nothing"
    with pytest.raises(VerifyError, match="the onnx checker says"):
        sqo.verify(matmul(), broken)
    with pytest.raises(SourceError, match="give real inputs"):
        sqo.verify(matmul(), matmul(), {"x": np.zeros((2, 65), np.float32)})


def test_importing_splitquant_imports_no_onnx():
    """onnx is loaded by splitquant.onnx alone, and onnxruntime by a call of verify alone."""
    code = (
        "import sys, splitquant, splitquant.cli.main; assert 'onnx' not in sys.modules;"
        "import splitquant.onnx; assert 'onnxruntime' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_onnx_is_told():
    """Without the onnx package the import says which extra to install."""
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "try:\n    import splitquant.onnx\nexcept ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "MissingExtraError" in done.stdout
    assert "splitquant[onnx]" in done.stdout


def _sequence(weight):
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["y"]),
        helper.make_node("SequenceConstruct", ["y", "y"], ["s"]),
    ]
    return model(nodes, [value("x", ["b", 64])], [helper.make_tensor_sequence_value_info("s", 1, None)], {"W": weight})


def test_sequences_are_compared():
    """The tensors of a sequence count like any other output."""
    made = _sequence(heavy((64, 48)))
    assert sqo.verify(made, made, min_sqnr=100).worst_sqnr_db > 100
    with pytest.raises(VerifyError, match="output 's' has an SQNR of"):
        sqo.verify(made, _sequence(heavy((64, 48), 1)), min_sqnr=20)


def test_text_is_compared():
    """Text must be the same."""

    def made(text):
        nodes = [
            helper.make_node("MatMul", ["x", "W"], ["y"]),
            helper.make_node("Constant", [], ["t"], value_strings=[text]),
        ]
        return model(
            nodes, [value("x", ["b", 64])], [value("y", ["b", 48]), value("t", [1], 8)], {"W": heavy((64, 48))}
        )

    sqo.verify(made("a"), made("a"))
    with pytest.raises(VerifyError, match="output 't' holds other text"):
        sqo.verify(made("a"), made("b"))


def test_outputs_that_cannot_be_compared():
    """Where the source makes nothing finite, or the bound is NaN, verify fails instead of passing."""
    made = matmul(np.full((64, 48), np.nan, np.float32))
    with pytest.raises(VerifyError, match="nothing can be compared"):
        sqo.verify(made, matmul())
    with pytest.raises(SpecError, match="min_sqnr is NaN"):
        sqo.verify(matmul(), matmul(), min_sqnr=float("nan"))


def test_verify_takes_files(tmp_path):
    """A folder, or a path with nothing there, is named."""
    for path in (tmp_path, tmp_path / "nothing.onnx"):
        with pytest.raises(SourceError, match=r"is no file; expected an .onnx model"):
            sqo.verify(matmul(), path)
