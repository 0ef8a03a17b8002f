"""`verify` runs both models, measures the outputs, and counts which branches use a low-bit kernel."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from onnx import helper, numpy_helper

import splitquant.onnx as sqo
from builders.onnx_models import EXACT, TWO_PARTS, heavy, matmul, model, run, sqnr, value
from splitquant import QuantSpec
from splitquant.errors import SourceError, SpecError, VerifyError
from splitquant.onnx.explained import explained
from splitquant.onnx.feeds import generated


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:32"])
def test_all_branches_of_matmul_use_low_bit_kernels(form, bits, granularity):
    """2-D inputs, where a chain of Adds would become Gemm: all three branches end as MatMulNBits."""
    made = matmul(heavy((64, 256)))
    done = sqo.quantize(made, spec=QuantSpec(bits=bits, layout="parallel", granularity=granularity), format=form)
    if done.report.outcomes[0].outcome == "kept":
        pytest.skip("would not get smaller")
    found = sqo.verify(made, done.model)
    assert (found.branches, found.in_kernels, found.dequantized) == (3, 3, 0)
    assert found.operators["Sum"] == 1


def test_gemm_becomes_matmul_branches():
    """A Gemm with a bias keeps the fast kernels too: it becomes MatMul branches, and the bias a term of the sum."""
    node = helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="fc", transB=1)
    made = model([node], [value("x", [4, 64])], [value("y", [4, 256])], {"W": heavy((256, 64)), "c": heavy((256,))})
    for form in ("qdq", "matmulnbits"):
        found = sqo.verify(made, sqo.quantize(made, format=form, spec=TWO_PARTS).model)
        assert (found.branches, found.in_kernels) == (2, 2)


def test_convolutions_are_counted_as_dequantized():
    """ONNX Runtime has no low-bit convolution on CPU: the count says so."""
    node = helper.make_node("Conv", ["x", "W"], ["y"], name="conv")
    made = model([node], [value("x", [1, 8, 9, 9])], [value("y", [1, 16, 7, 7])], {"W": heavy((16, 8, 3, 3))})
    found = sqo.verify(made, sqo.quantize(made, spec=TWO_PARTS).model)
    assert (found.branches, found.in_kernels, found.dequantized) == (2, 0, 2)


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


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_only_new_branches_are_counted(form):
    """A layer that the source has in low bits already is no branch of ours."""
    first = sqo.quantize(matmul(heavy((64, 256))), format="matmulnbits", spec=TWO_PARTS).model
    first.graph.node[-1].output[0] = "h"
    first.graph.node.append(helper.make_node("MatMul", ["h", "V"], ["y"], name="second"))
    first.graph.initializer.append(numpy_helper.from_array(heavy((256, 256), 1), "V"))
    found = sqo.verify(first, sqo.quantize(first, format=form, spec=TWO_PARTS).model)
    assert (found.branches, found.in_kernels, found.dequantized, found.folded) == (2, 2, 0, 0)
    assert found.operators["MatMulNBits"] == 4
    assert sqo.verify(first, first).branches == 0


def test_sizes_of_open_dimensions():
    """Given sizes are those of the inputs, also inside sums of names; a name that no input has is told."""
    node = helper.make_node("Add", ["a", "b"], ["y"])
    made = model([node], [value("a", ["s", "past + s"]), value("b", ["past + s"])], [value("y", None)])
    shapes = {name: array.shape for name, array in generated(made, 0, {"s": 3, "past": 2}).items()}
    assert shapes == {"a": (3, 5), "b": (5,)}
    with pytest.raises(SpecError, match=r"no open dimensions \['t'\]; they have \['past', 'past \+ s', 's'\]"):
        generated(made, 0, {"t": 3})


def test_empty_outputs_prove_nothing():
    """Outputs without a number, and no inputs at all, fail: nothing was compared."""
    made = matmul()
    for nothing in ({"sizes": {"b": 0}}, {"inputs": {"x": np.zeros((0, 64), np.float32)}}, {"inputs": []}):
        with pytest.raises(VerifyError, match=r"output 'y' is empty.*nothing can be compared"):
            sqo.verify(made, made, **nothing)


def test_made_up_inputs_have_a_bound():
    """Sizes that no memory holds are told; a negative one, as some exporters write it, is open."""
    with pytest.raises(SpecError, match=r"input 'x' has the shape \(999999999, 64\).*--size NAME=N"):
        sqo.verify(matmul(), matmul(), sizes={"b": 999999999})
    with pytest.raises(SpecError, match="at most"):
        generated(matmul(batch=(1 << 45, 64)), 0)
    assert generated(matmul(batch=(-1, 64)), 0)["x"].shape == (4, 64)
    assert generated(matmul(batch=("9" * 5000 + " + 1", 64)), 0)["x"].shape == (5, 64)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("wanted", "array"),
    [
        (7, np.array([1.5])),
        (7, np.array([np.nan])),
        (2, np.array([-1])),
        (9, np.array([2])),
        (1, np.array([1e300])),
        (1, np.array(["text"])),
        (8, np.array([1.0])),
    ],
)
def test_given_inputs_keep_their_values(wanted, array):
    """Numbers that the model's type does not hold, and text for numbers, are refused instead of cast."""
    made = model([helper.make_node("Identity", ["x"], ["y"])], [value("x", [1], wanted)], [value("y", [1], wanted)])
    with pytest.raises(SpecError, match=r"input 'x' is .*convert it"):
        sqo.verify(made, made, {"x": array})


def test_given_inputs_of_another_type():
    """Numbers that fit are taken whatever their type: rounded to the model's floats, exact in integers."""
    assert sqo.verify(matmul(), matmul(), {"x": heavy((2, 64)).astype(np.float64)}).worst_sqnr_db > 100
    made = model([helper.make_node("Identity", ["x"], ["y"])], [value("x", [2], 7)], [value("y", [2], 7)])
    assert sqo.verify(made, made, {"x": np.array([1.0, 2.0])}).worst_sqnr_db > 100


@pytest.mark.parametrize(("bits", "level", "kernels"), [(4, 1, 1), (2, 1, 0), (8, 1, 0), (8, 4, 1)])
def test_matmulnbits_without_a_kernel(bits, level, kernels):
    """With float activations ONNX Runtime has 4-bit kernels only; other widths it expands in every run."""
    made = matmul(heavy((128, 256)), batch=("b", 128))
    spec = QuantSpec(bits, 1, layout="parallel")
    found = sqo.verify(made, sqo.quantize(made, spec=spec, format="matmulnbits", accuracy_level=level).model)
    assert (found.in_kernels, found.dequantized) == (kernels, 1 - kernels)


def _doubled(done):
    """A converted model that makes twice what it should, as a wrongly raised operator would."""
    out = done.model
    out.graph.node[-1].output[0] = "half"
    out.graph.node.append(helper.make_node("Sum", ["half", "half"], ["y"]))
    return out


def test_outputs_far_below_what_the_weights_explain_fail():
    """0 dB with weights of 40 dB is an error without any bound; a bound of one's own takes its place."""
    made = matmul()
    out = _doubled(sqo.quantize(made, spec=TWO_PARTS))
    with pytest.raises(
        VerifyError, match=r"output 'y' has an SQNR of 0.\d dB, and its weights alone would leave [34]\d.\d dB"
    ):
        sqo.verify(made, out)
    assert sqo.verify(made, out, min_sqnr=-1).worst_sqnr_db < 1


def test_low_outputs_that_the_weights_explain_pass_with_a_warning():
    """Plain 2 bits leave 8 dB at most: no error, but said."""
    made = matmul()
    done = sqo.quantize(made, spec=QuantSpec(bits=2, clusters=1, granularity="tensor", layout="parallel"))
    found = sqo.verify(made, done.model)
    assert found.worst_sqnr_db < 10
    assert abs(found.outputs[0].explained_db - found.worst_sqnr_db) < 1
    assert "by its weights alone" in found.warnings[0]


def test_what_cannot_be_explained_is_warned_of():
    """A model that did not come from here, whose weights nobody can name."""
    found = sqo.verify(matmul(), matmul(heavy((64, 48), 1)))
    assert found.outputs[0].explained_db is None
    assert "could not be measured" in found.warnings[0]


def test_outputs_of_integers_are_warned_of():
    """The largest of each row may be another one: that is no error of a float."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("ArgMax", ["h"], ["y"], axis=1)]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 1], 7)], {"W": heavy((64, 48))})
    out = sqo.quantize(made).model
    out.graph.node[-1].input[0] = "n"
    out.graph.node.insert(len(out.graph.node) - 1, helper.make_node("Neg", ["h"], ["n"]))
    assert "it holds no floats" in sqo.verify(made, out).warnings[0]


@pytest.mark.parametrize("kind", ["matmul", "left", "gemm", "conv", "gather"])
@pytest.mark.parametrize(
    "form",
    [
        {"spec": QuantSpec(bits=4, layout="parallel")},
        {"spec": QuantSpec(bits=8, clusters=1, layout="parallel")},
        {"spec": QuantSpec(bits=4, clusters=1, layout="parallel", granularity="group:32", symmetric=True)},
        {"spec": QuantSpec(bits=4, clusters=1, layout="parallel", granularity="group:32")},
        {"spec": QuantSpec(bits=4, layout="parallel", granularity="tensor")},
        {"spec": QuantSpec(bits=2, layout="parallel"), "format": "matmulnbits"},
        {"spec": QuantSpec(bits=4, clusters=1, layout="parallel"), "format": "matmulnbits"},
        {"spec": QuantSpec(bits=8, clusters=1, layout="parallel", symmetric=True), "format": "matmulnbits"},
        {"spec": QuantSpec(bits=8, clusters=1, layout="parallel"), "activations": "int8-tensor"},
        {"spec": QuantSpec(bits=4, clusters=2, layout="parallel"), "activations": "int8-tensor"},
    ],
    ids=str,
)
def test_decoded_weights_are_those_of_the_model(kind, form):
    """The source with the decoded weights makes what the converted model makes where activations are floats."""
    nodes = {
        "matmul": helper.make_node("MatMul", ["x", "W"], ["y"]),
        "left": helper.make_node("MatMul", ["W", "x"], ["y"]),
        "gemm": helper.make_node("Gemm", ["x", "W", "c"], ["y"], transB=1, alpha=0.5),
        "conv": helper.make_node("Conv", ["x", "W"], ["y"]),
        "gather": helper.make_node("Gather", ["W", "x"], ["y"]),
    }
    shapes = {"matmul": [5, 64], "left": [96, 5], "gemm": [5, 96], "conv": [1, 8, 9, 9], "gather": [5]}
    weight = heavy((16, 8, 3, 3)) if kind == "conv" else heavy((64, 96))
    made = model(
        [nodes[kind]],
        [value("x", shapes[kind], 7 if kind == "gather" else 1)],
        [value("y", None)],
        {"W": weight, "c": heavy((64,))},
    )
    out = sqo.quantize(made, **form).model
    x = np.arange(5) * 12 if kind == "gather" else heavy(shapes[kind], 9)
    (wanted,), (got,) = run(explained(made, out), {"x": x}), run(out, {"x": x}, **EXACT)
    int8_activations = form.get("format") == "matmulnbits" or "activations" in form
    assert sqnr(wanted, got) > (25 if int8_activations else 90)
    assert sqnr(run(made, {"x": x})[0], wanted) > 3


def _half_chain():
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("MatMul", ["s", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    return model(nodes, [value("x", [3, 64], 10)], [value("y", [3, 48], 10)], {"W": heavy((64, 48), dtype=np.float16)})


def test_float16_computes_in_floats_at_every_level_of_optimisation():
    """INT8 activations beside float32 nodes make zeros of float16 models there, so float ones are the default."""
    import onnxruntime

    made = _half_chain()
    out = sqo.quantize(made, spec=QuantSpec(bits=8, clusters=1, layout="parallel"), format="matmulnbits").model
    x = heavy((3, 64), 9, np.float16)
    (wanted,) = run(made, {"x": x})
    levels = onnxruntime.GraphOptimizationLevel
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_EXTENDED, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(out.SerializeToString(), options, providers=["CPUExecutionProvider"])
        assert sqnr(wanted, session.run(None, {"x": x})[0]) > 35


def test_float16_with_int8_activations_is_said():
    """Asked for, they are given, with a remark; verify looks what is left without optimisations."""
    made = _half_chain()
    done = sqo.quantize(made, format="matmulnbits", accuracy_level=4)
    assert "unless all graph optimisations are enabled" in done.report.outcomes[0].reason
    assert "with graph optimisations disabled, output 'y' has" in sqo.verify(made, done.model).warnings[0]
    assert not sqo.verify(made, sqo.quantize(made, format="matmulnbits").model).warnings


def test_made_up_inputs_fit_what_the_model_asks_for():
    """Ids are below the rows of the smallest table they choose from, positions end at theirs, open sizes are tried."""
    nodes = [
        helper.make_node("Cast", ["token_ids"], ["ids"], to=7),
        helper.make_node("Gather", ["T", "ids"], ["a"]),
        helper.make_node("Gather", ["P", "position_ids"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["h"]),
        helper.make_node("MatMul", ["h", "W"], ["y"]),
    ]
    made = model(
        nodes,
        [value("token_ids", ["batch", "sequence"], 6), value("position_ids", ["batch", "sequence"], 7)],
        [value("y", None)],
        {"T": heavy((3, 64)), "P": heavy((2, 64)), "W": heavy((64, 48))},
    )
    feeds = generated(made, 0, {"sequence": 40})
    assert set(feeds["token_ids"].ravel().tolist()) == {0, 1, 2}
    assert feeds["position_ids"].max() == 1
    sqo.verify(made, sqo.quantize(made).model)


def test_open_sizes_are_tried():
    """A convolution that needs 100 samples, and a reshape that needs a multiple of 32."""
    nodes = [helper.make_node("Conv", ["x", "W"], ["y"])]
    made = model(nodes, [value("x", ["batch", 4, "samples"])], [value("y", None)], {"W": heavy((8, 4, 100))})
    assert sqo.verify(made, sqo.quantize(made).model).worst_sqnr_db > 15
    nodes = [helper.make_node("Reshape", ["x", "s"], ["h"]), helper.make_node("MatMul", ["h", "W"], ["y"])]
    shape = np.array([-1, 32], np.int64)
    made = model(nodes, [value("x", ["any"])], [value("y", None)], {"W": heavy((32, 48)), "s": shape})
    assert sqo.verify(made, sqo.quantize(made).model).worst_sqnr_db > 15


def test_lengths_are_those_of_the_sequences():
    """An input of lengths holds the size of the sequence that it is about."""
    made = matmul()
    made.graph.input.extend([value("lengths", ["batch"], 7), value("audio", ["batch", "time"])])
    feeds = generated(made, 0, {"time": 80})
    assert feeds["lengths"].tolist() == [80]


def test_convolutions_that_are_dequantized_are_hinted_at():
    """The session entry that folds them is named."""
    node = helper.make_node("Conv", ["x", "W"], ["y"], name="conv")
    made = model([node], [value("x", [1, 8, 9, 9])], [value("y", [1, 16, 7, 7])], {"W": heavy((16, 8, 3, 3))})
    out = sqo.quantize(made).model
    assert 'session.disable_quant_qdq = "1"' in sqo.verify(made, out).hints[0]
