"""Other people's min-max quantizers on residual float parts: where their convention has a fixed point they find it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import splitquant.onnx as sqo
from builders.onnx_models import EXACT, float_parts, heavy, matmul, run, sqnr, weights_of
from splitquant import QuantSpec

pytestmark = pytest.mark.filterwarnings("ignore")
W, X = heavy((64, 48)), np.random.default_rng(9).standard_normal((16, 64)).astype(np.float32)


def residual(bits, granularity, symmetric=False, clusters=2):
    return QuantSpec(bits, clusters, "residual", granularity, symmetric)


def gain(quantized, split):
    """By how many dB the quantized split model is nearer than the quantized model."""
    wanted = X @ W
    plain, better = (run(quantized(proto), {"x": X}, **EXACT)[0] for proto in (matmul(), split))
    return sqnr(wanted, better) - sqnr(wanted, plain)


def nbits(bits, block, symmetric, **more):
    """onnxruntime's MatMulNBitsQuantizer as a function of models."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    def quantized(proto):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        quantizer = MatMulNBitsQuantizer(
            copy, bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=1, **more
        )
        quantizer.process()
        return quantizer.model.model

    return quantized


# Blocks of 64 are whole columns here. Measured gains: 23.5, 24.5, 18.8, 24.0, 24.1, 18.3 dB.
@pytest.mark.parametrize(
    ("bits", "block", "spec", "least"),
    [
        (4, 64, residual(4, "channel"), 20),
        (4, 16, residual(4, "group:16"), 20),
        (2, 64, residual(2, "channel", clusters=3), 15),
        (4, 64, residual(4, "channel", symmetric=True), 20),
        (4, 16, residual(4, "group:16", symmetric=True), 20),
        (2, 64, residual(2, "channel", symmetric=True, clusters=3), 15),
    ],
)
def test_matmulnbits_finds_the_first_part(bits, block, spec, least):
    """Asymmetric: (max - min) / 15. Symmetric: a signed absmax / 8, for which the first part is made with full_range."""
    split = sqo.split(matmul(), spec=spec, full_range=spec.symmetric).model
    quantize = nbits(bits, block, spec.symmetric)
    *found, _ = weights_of(quantize(split))
    *made, _ = float_parts(split)
    for ours, theirs in zip(made, found, strict=True):
        assert np.array_equal(ours, theirs)
    assert gain(quantize, split) > least


@pytest.mark.parametrize("symmetric", [False, True])
def test_matmulnbits_as_qdq_finds_the_first_part(symmetric):
    """The same tool writing DequantizeLinear."""
    from onnxruntime.quantization.quant_utils import QuantFormat

    split = sqo.split(matmul(), spec=residual(4, "channel", symmetric), full_range=symmetric).model
    quantize = nbits(4, 64, symmetric, quant_format=QuantFormat.QDQ)
    assert np.array_equal(constants_of(quantize(split))[0], float_parts(split)[0])
    assert gain(quantize, split) > 20


def test_matmulnbits_with_8_bits_finds_a_grid_of_4():
    """255 = 15 * 17: every level of an asymmetric INT4 grid is one of the INT8 grid, up to float32 rounding."""
    split = sqo.split(matmul(), spec=residual(4, "channel")).model
    found = weights_of(nbits(8, 64, symmetric=False)(split))[0]
    assert np.allclose(found, float_parts(split)[0], rtol=0, atol=1e-7)
    assert gain(nbits(8, 64, symmetric=False), split) > 20  # measured: 24.0


def constants_of(proto):
    """The weights that a quantized model decodes from its constants: DequantizeLinear and MatMulInteger, in order."""
    tensors = {tensor.name: numpy_helper.to_array(tensor).astype(np.float32) for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            codes, scale, *zero = (tensors[name] for name in node.input)
        elif node.op_type == "MatMulInteger":
            name = node.input[1].removesuffix("_quantized")
            codes, scale, *zero = (tensors[name + suffix] for suffix in ("_quantized", "_scale", "_zero_point"))
        else:
            continue
        if codes.shape == W.shape:
            found.append((codes - (zero[0] if zero else np.float32(0))) * scale)
    return found


def static(tmp_path, weight_type, *, per_channel=False, **extra):
    """onnxruntime's quantize_static as a function of models; 16-bit activations, so that weights decide."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": X}]

        def get_next(self):
            return self.left.pop() if self.left else None

    def quantized(proto):
        onnx.save(proto, tmp_path / "float.onnx")
        quantize_static(
            tmp_path / "float.onnx",
            tmp_path / "static.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt16,
            weight_type=QuantType[weight_type],
            per_channel=per_channel,
            extra_options={"UseQDQContribOps": True, **extra},
        )
        return onnx.load(tmp_path / "static.onnx")

    return quantized


def dynamic(tmp_path, weight_type, **more):
    """onnxruntime's quantize_dynamic as a function of models."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def quantized(proto):
        onnx.save(proto, tmp_path / "float.onnx")
        options = {"MatMulConstBOnly": True}
        quantize_dynamic(
            tmp_path / "float.onnx",
            tmp_path / "dynamic.onnx",
            weight_type=QuantType[weight_type],
            extra_options=options,
            **more,
        )
        return onnx.load(tmp_path / "dynamic.onnx")

    return quantized


# Measured gains: 23.7, 23.7, 24.0, 24.0 dB.
@pytest.mark.parametrize(
    ("weight_type", "extra"),
    [("QUInt4", {}), ("QInt4", {"WeightSymmetric": False}), ("QUInt8", {}), ("QInt8", {"WeightSymmetric": False})],
)
def test_quantize_static_per_tensor_finds_the_first_part(weight_type, extra, tmp_path):
    """Its asymmetric grids: the first part comes back bit for bit, in INT4 and in INT8."""
    quantize = static(tmp_path, weight_type, **extra)
    split = sqo.split(matmul(), spec=residual(4, "tensor")).model
    assert np.array_equal(constants_of(quantize(split))[0], float_parts(split)[0])
    assert gain(quantize, split) > 20


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_dynamic_finds_the_first_part(per_channel, tmp_path):
    """Asymmetric, per tensor bit for bit, per channel up to float32 rounding; its INT8 activations limit the gain."""
    split = sqo.split(matmul(), spec=residual(4, "channel" if per_channel else "tensor")).model
    quantize = dynamic(tmp_path, "QUInt8", per_channel=per_channel)
    found, made = constants_of(quantize(split))[0], float_parts(split)[0]
    assert np.allclose(found, made, rtol=0, atol=1e-7 if per_channel else 0)
    assert gain(quantize, split) > 3  # measured: 9.1 per tensor, 3.6 per channel


# Measured gains: 12.5 and 7.0 dB residual, 13.1 and 8.0 by magnitude.
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_static_symmetric_has_no_fixed_point(per_channel, tmp_path):
    """Its symmetric INT4 steps by absmax / 7.5 (always so per channel): absmax is no level. Parts help still, by magnitude most."""
    granularity = "channel" if per_channel else "tensor"
    gains = {}
    for spec in (
        residual(4, granularity, symmetric=True),
        QuantSpec(4, 3, "magnitude", granularity, layout="parallel"),
    ):
        split = sqo.split(matmul(), spec=spec).model
        quantize = static(tmp_path, "QInt4", per_channel=per_channel)
        assert not np.array_equal(constants_of(quantize(split))[0], float_parts(split)[0])
        gains[spec.strategy] = gain(quantize, split)
    assert min(gains.values()) > 5
    assert gains["magnitude"] > gains["residual"]


# Measured gains of residual, magnitude k = 2: 7.1, 9.5 dB per tensor; 3.6, 7.2 per channel.
@pytest.mark.parametrize("per_channel", [False, True])
def test_symmetric_8_bits_have_no_grid_of_4(per_channel, tmp_path):
    """absmax / 127: 127 is prime, so no coarser grid is a part of that one; parts by magnitude gain most."""
    granularity, gains = "channel" if per_channel else "tensor", {}
    quantize = static(tmp_path, "QInt8", per_channel=per_channel)
    for spec in (
        residual(4, granularity, symmetric=True),
        QuantSpec(8, 2, "magnitude", granularity, layout="parallel"),
    ):
        split = sqo.split(matmul(), spec=spec).model
        assert not np.allclose(constants_of(quantize(split))[0], float_parts(split)[0], rtol=0, atol=1e-6)
        gains[spec.strategy] = gain(quantize, split)
    assert gains["magnitude"] > gains["residual"] > 2


def nncf_weights(proto, mode, tmp_path, **more):
    """The output on X and the weight of each branch after NNCF's compress_weights, run by OpenVINO in float32."""
    openvino = pytest.importorskip("openvino")
    nncf = pytest.importorskip("nncf")
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in proto.graph.node:
        if node.op_type == "Sum":
            copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in node.input)
    onnx.save(copy, tmp_path / "for_nncf.onnx")
    whole = openvino.convert_model(tmp_path / "for_nncf.onnx")
    small = nncf.compress_weights(whole, mode=getattr(nncf.CompressWeightsMode, mode), **more)
    config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = openvino.Core().compile_model(small, "CPU", config)
    output = np.asarray(compiled({"x": X})[0])
    branches = compiled({"x": np.eye(64, dtype=np.float32)})
    return output, [np.asarray(branches[port]) for port in compiled.outputs[1:]]


# Measured gains: 23.6, 24.5, 24.0, 24.1, 18.3 dB.
@pytest.mark.parametrize(
    ("mode", "group", "spec", "least"),
    [
        ("INT4_ASYM", -1, residual(4, "channel"), 20),
        ("INT4_ASYM", 16, residual(4, "group:16"), 20),
        ("INT4_SYM", -1, residual(4, "channel", symmetric=True), 20),
        ("INT4_SYM", 16, residual(4, "group:16", symmetric=True), 20),
        ("INT2_SYM", -1, residual(2, "channel", symmetric=True, clusters=3), 15),
    ],
)
def test_nncf_finds_the_first_part(mode, group, spec, least, tmp_path):
    """NNCF, its scales rounded to float16 included: every part but the last comes back bit for bit."""
    split = sqo.split(matmul(), spec=spec, full_range=spec.symmetric).model
    options = {"group_size": group, "all_layers": True}
    output, (*found, _) = nncf_weights(split, mode, tmp_path, **options)
    for ours, theirs in zip(float_parts(split), found, strict=False):
        assert np.array_equal(ours, theirs)
    plain, _ = nncf_weights(matmul(), mode, tmp_path, **options)
    assert sqnr(X @ W, output) - sqnr(X @ W, plain) > least


@pytest.mark.parametrize("mode", ["INT8_ASYM", "INT8_SYM"])
def test_nncf_with_8_bits_finds_a_grid_of_4(mode, tmp_path):
    """255 = 15 * 17 and 128 = 8 * 16: the same codes, and values up to the float16 that scales are rounded to."""
    symmetric = mode.endswith("_SYM")
    split = sqo.split(matmul(), spec=residual(4, "channel", symmetric), full_range=symmetric).model
    output, found = nncf_weights(split, mode, tmp_path)
    first = float_parts(split)[0]
    assert np.abs(found[0] - first).max() <= (0 if symmetric else 2.0**-11 * np.abs(first).max())
    plain, _ = nncf_weights(matmul(), mode, tmp_path)
    assert sqnr(X @ W, output) - sqnr(X @ W, plain) > 18  # measured: 23.1 and 22.6
