"""Other people's tools on our models: they run them, keep the branches, and quantize a split model better than a plain one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import splitquant.onnx as sqo
from builders.onnx_models import TWO_PARTS, heavy, matmul, model, ops, run, sqnr, value
from splitquant import QuantSpec

X = np.random.default_rng(9).standard_normal((16, 64)).astype(np.float32)
TENSOR = QuantSpec(bits=4, layout="parallel", granularity="tensor")


def outliers(shape=(64, 128)):
    """Weights as in transformers: a normal bulk and a few large ones."""
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 0.05
    weight.reshape(-1)[:: weight.size // 8] = 1.0
    return weight


def conv_model():
    node = helper.make_node("Conv", ["x", "W", "c"], ["y"], name="conv", pads=[1, 1, 1, 1])
    return model(
        [node], [value("x", [1, 8, 9, 9])], [value("y", [1, 16, 9, 9])], {"W": heavy((16, 8, 3, 3)), "c": heavy((16,))}
    )


def openvino_model(proto, tmp_path):
    openvino = pytest.importorskip("openvino")
    onnx.save(proto, tmp_path / "for_openvino.onnx")
    return openvino.convert_model(tmp_path / "for_openvino.onnx")


def openvino_run(proto, feeds, tmp_path):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(
        openvino_model(proto, tmp_path),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    )
    return [np.asarray(compiled(feeds)[output]) for output in compiled.outputs]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", ["matmul", "conv"])
@pytest.mark.parametrize(
    "spec", [QuantSpec(bits=4, layout="parallel"), TENSOR, QuantSpec(bits=8, clusters=2, layout="parallel")], ids=str
)
def test_openvino_computes_what_onnx_runtime_computes(layer, spec, tmp_path):
    """QDQ and split models give the same results in OpenVINO and in ONNX Runtime's unoptimised graph."""
    made, feeds = (matmul(), {"x": X}) if layer == "matmul" else (conv_model(), {"x": heavy((1, 8, 9, 9), 3)})
    for done in (sqo.split(made), sqo.quantize(made, spec=spec)):
        wanted = run(done.model, feeds, session__qdq_matmulnbits_accuracy_level="1")[0]
        assert (
            sqnr(wanted, openvino_run(done.model, feeds, tmp_path)[0]) > 50
        )  # its CPU plugin rounds decompressed weights


@pytest.mark.filterwarnings("ignore")
def test_weights_stay_4_bit_in_openvino(tmp_path):
    """OpenVINO keeps the codes of all three parts as u4 in the model it saves."""
    openvino = pytest.importorskip("openvino")
    made = sqo.quantize(matmul(heavy((256, 256)), batch=("b", 256)), spec=TWO_PARTS).model
    converted = openvino_model(made, tmp_path)
    types = [
        node.get_element_type().get_type_name() for node in converted.get_ops() if node.get_type_name() == "Constant"
    ]
    assert types.count("u4") >= 3
    openvino.save_model(converted, tmp_path / "m.xml")
    assert (tmp_path / "m.bin").stat().st_size < 256 * 256 * 3 * 0.55 + 16384


def matmul_nbits(proto):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    quantizer = MatMulNBitsQuantizer(copy, bits=4, block_size=64, is_symmetric=False, accuracy_level=1)
    quantizer.process()
    return quantizer.model.model


def quantize_dynamic(proto, tmp_path):
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as dynamic

    onnx.save(proto, tmp_path / "float.onnx")
    dynamic(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        weight_type=QuantType.QUInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    return tmp_path / "int8.onnx"


def quantize_static(proto, tmp_path, feeds):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [feeds]

        def get_next(self):
            return self.left.pop() if self.left else None

    onnx.save(proto, tmp_path / "float.onnx")
    static(
        tmp_path / "float.onnx",
        tmp_path / "static.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QUInt8,
        extra_options={"UseQDQContribOps": True},
    )
    return tmp_path / "static.onnx"


def gain(wanted, plain, split, feeds):
    """By how many dB the quantized split model is nearer than the quantized plain one."""
    return sqnr(wanted, run(split, feeds)[0]) - sqnr(wanted, run(plain, feeds)[0])


@pytest.mark.filterwarnings("ignore")
def test_matmulnbits_quantizer_gains():
    """onnxruntime's INT4 quantizer finds all three branches, and the outputs come nearer by more than 6 dB."""
    made = matmul(outliers(), batch=("b", 64))
    split = matmul_nbits(sqo.split(made, spec=TENSOR).model)
    assert ops(split)["MatMulNBits"] == 3
    assert gain(X @ outliers(), matmul_nbits(made), split, {"x": X}) > 6


@pytest.mark.filterwarnings("ignore")
def test_quantize_dynamic_keeps_branches(tmp_path):
    """quantize_dynamic makes three integer products of the branches; weights gain, activations limit what is seen."""
    made = matmul(outliers(), batch=("b", 64))
    before = quantize_dynamic(made, tmp_path)
    plain = run(before, {"x": X})[0]
    after = quantize_dynamic(sqo.split(made, spec=TENSOR).model, tmp_path)
    kinds = ops(onnx.load(after))
    assert kinds.get("MatMulInteger", 0) + kinds.get("DynamicQuantizeMatMul", 0) == 3
    assert sqnr(X @ outliers(), run(after, {"x": X})[0]) > sqnr(X @ outliers(), plain)


@pytest.mark.filterwarnings("ignore")
def test_quantize_static_gains(tmp_path):
    """quantize_static with 16-bit activations: the split model is nearer by more than 6 dB."""
    made = matmul(outliers(), batch=("b", 64))
    wanted = X @ outliers()
    plain = run(quantize_static(made, tmp_path, {"x": X}), {"x": X})[0]
    split = run(quantize_static(sqo.split(made, spec=TENSOR).model, tmp_path, {"x": X}), {"x": X})[0]
    assert sqnr(wanted, split) - sqnr(wanted, plain) > 6


@pytest.mark.filterwarnings("ignore")
def test_nncf_gains(tmp_path):
    """NNCF's data-free INT4, per channel: three compressed branches, nearer by more than 6 dB."""
    openvino = pytest.importorskip("openvino")
    nncf = pytest.importorskip("nncf")
    made = matmul(outliers(), batch=("b", 64))

    def compressed(proto):
        whole = openvino_model(proto, tmp_path)
        small = nncf.compress_weights(whole, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=-1, all_layers=True)
        names = [
            node.get_element_type().get_type_name() for node in small.get_ops() if node.get_type_name() == "Constant"
        ]
        compiled = openvino.Core().compile_model(small, "CPU")
        return np.asarray(compiled({"x": X})[0]), names.count("u4")

    wanted = X @ outliers()
    plain, _ = compressed(made)
    split, count = compressed(sqo.split(made, spec=TENSOR).model)
    assert count >= 3
    assert sqnr(wanted, split) - sqnr(wanted, plain) > 6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim"])
@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
@pytest.mark.parametrize("layer", ["matmul", "conv"])
def test_simplifiers_leave_the_branches(tool, form, layer):
    """onnxsim and onnxslim over our models: as many branches before as after."""
    simplifier = pytest.importorskip(tool)
    made = matmul() if layer == "matmul" else conv_model()
    done = (sqo.split(made) if form == "float" else sqo.quantize(made, format=form, spec=TWO_PARTS)).model
    simple = simplifier.simplify(done)[0] if tool == "onnxsim" else simplifier.slim(done)
    wanted = {"MatMul", "Conv", "MatMulNBits"}
    assert sum(count for op, count in ops(simple).items() if op in wanted) == (3 if form == "float" else 2)
    feeds = {"x": X} if layer == "matmul" else {"x": heavy((1, 8, 9, 9), 3)}
    exact = {"session__qdq_matmulnbits_accuracy_level": "1"}  # the tools change which branches ONNX Runtime fuses
    limit = 30 if form == "matmulnbits" else 60
    assert sqnr(run(done, feeds, **exact)[0], run(simple, feeds, **exact)[0]) > limit
