"""PackedWeight: the weight of a layer, packed."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec  # noqa: E402
from splitquant.core.split import quantize_array  # noqa: E402
from splitquant.errors import TensorError  # noqa: E402
from splitquant.format.weight import Weight  # noqa: E402
from splitquant.torch import PackedWeight  # noqa: E402
from splitquant.torch.carriers import attach, can_carry, packed_weights, unpack_all  # noqa: E402
from splitquant.torch.decode import decode, decode_with_torch  # noqa: E402
from splitquant.torch.packing import check_planes, planes_from, to_numpy  # noqa: E402

SPECS = [
    QuantSpec(),
    EMBEDDING,
    PAPER,
    QuantSpec(bits=3, clusters=2, granularity="group:7"),
    QuantSpec(bits=5, clusters=8, granularity="tensor"),
    QuantSpec(bits=7, clusters=5, granularity="group:32"),
    QuantSpec(bits=2, clusters=1, symmetric=True),
    QuantSpec(bits=4, clusters=1),
    QuantSpec(bits=3, clusters=1, granularity="group:7"),
    QuantSpec(bits=8, clusters=1, granularity="group:32", polish=False),
    QuantSpec(bits=4, clusters=1, zero_points="shared"),
    QuantSpec(bits=3, clusters=3, strategy="magnitude"),
    QuantSpec(bits=4, clusters=2, strategy="residual"),
    QuantSpec(bits=2, clusters=3, strategy="residual", granularity="tensor", symmetric=True),
    QuantSpec(bits=5, clusters=1, strategy="residual"),
    QuantSpec(bits=4, clusters=3, strategy="lloyd"),
    QuantSpec(bits=2, clusters=1, strategy="lloyd", granularity="group:7"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weight_of(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_both_decoders_give_core_bits(spec, dtype):
    """Kernels, tensor operations and core.dequantize give the same bits, in every dtype and for odd widths."""
    weight = weight_of((6, 37), dtype)
    split = quantize_array(to_numpy(weight), spec)
    packed = PackedWeight.from_tensor(weight, spec)
    planes = {name: plane for name, plane in packed.planes().items() if name != "shape"}
    kind = packed.packing.kind
    assert np.array_equal(to_numpy(packed.dequantize()), split.dequantize(kind))
    assert torch.equal(decode_with_torch(planes, spec, 37, dtype), packed.dequantize())


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_other_dtypes_are_casts_of_the_stored_one(stored, wanted):
    """In another dtype the weight is the stored one, cast: rounded first to its own dtype, then to the other."""
    packed = PackedWeight.from_tensor(weight_of((5, 24), stored), QuantSpec())
    assert torch.equal(packed.dequantize(wanted), packed.dequantize(stored).to(wanted))


def _layers():
    return [
        (nn.Linear(24, 10), weight_of((3, 24))),
        (nn.Linear(24, 10, bias=False), weight_of((2, 3, 24))),
        (nn.Embedding(30, 24, padding_idx=2), torch.tensor([[1, 2, 1, 29]])),
        (nn.Embedding(5, 24), torch.arange(5).repeat(4)),
        (nn.Embedding(5, 24), torch.empty(0, dtype=torch.long)),
        (nn.Conv1d(8, 6, 3, padding=1, padding_mode="circular"), weight_of((2, 8, 9))),
        (nn.Conv2d(8, 6, 3, groups=2), weight_of((2, 8, 5, 5))),
        (nn.Conv3d(4, 6, 2, stride=2), weight_of((1, 4, 4, 4, 4))),
        (nn.ConvTranspose2d(8, 6, 3), weight_of((1, 8, 4, 4))),
    ]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("index", range(9))
def test_layers(index, axis):
    """A layer with a packed weight gives the output of the layer with the dequantized weight."""
    layer, x = _layers()[index]
    packed = PackedWeight.from_tensor(layer.weight, QuantSpec(bits=3), axis)
    plain = copy.deepcopy(layer)
    plain.weight = nn.Parameter(packed.dequantize())
    assert can_carry(layer, "weight", tuple(layer.weight.shape))
    attach(layer, "weight", packed)
    if isinstance(layer, nn.Linear) and axis == 0:  # a kernel of its own, see test_products.py
        assert torch.allclose(layer(x), plain(x), atol=1e-6)
    else:
        assert torch.equal(layer(x), plain(x))


def test_transformers_conv1d():
    """transformers' Conv1D, whose weight is [in, out], carries packed weights too."""
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer = pytorch_utils.Conv1D(10, 24)
    packed = PackedWeight.from_tensor(layer.weight, QuantSpec(), axis=1)
    assert can_carry(layer, "weight", (24, 10))
    attach(layer, "weight", packed)
    x = weight_of((3, 24))
    assert torch.allclose(layer(x), torch.addmm(layer.bias, x, packed.dequantize()), atol=1e-6)


def test_multihead_attention():
    """A layer that hands its weight to a fused function works too."""
    layer = nn.MultiheadAttention(8, 2).eval()
    plain = copy.deepcopy(layer)
    packed = PackedWeight.from_tensor(layer.out_proj.weight, QuantSpec())
    attach(layer.out_proj, "weight", packed)
    plain.out_proj.weight = nn.Parameter(packed.dequantize())
    x = weight_of((3, 1, 8))
    assert torch.equal(layer(x, x, x)[0], plain(x, x, x)[0])


def test_embedding_decodes_only_its_rows(monkeypatch):
    """A look-up decodes as many rows as there are ids."""
    seen = []
    monkeypatch.setattr(
        "splitquant.torch.packed.decode_rows",
        lambda planes, packing, dtype: seen.append(len(planes["codes"])) or torch.zeros(3, 4),
    )
    layer = nn.Embedding(1000, 4)
    attach(layer, "weight", PackedWeight.from_tensor(layer.weight, EMBEDDING))
    assert layer(torch.tensor([7, 7, 900])).shape == (3, 4)
    assert seen == [3]


def test_id_out_of_range():
    """An id that is no row is an error, as in a float layer."""
    layer = nn.Embedding(10, 4)
    attach(layer, "weight", PackedWeight.from_tensor(layer.weight, EMBEDDING))
    with pytest.raises(IndexError):
        layer(torch.tensor([10]))


def test_weight_follows_the_input_dtype():
    """A product is in the dtype of its input."""
    packed = PackedWeight.from_tensor(weight_of((5, 24)), QuantSpec())
    for x in (weight_of((2, 24), torch.bfloat16), weight_of((2, 24), torch.float64)):
        found, expected = functional.linear(x, packed), functional.linear(x, packed.dequantize(x.dtype))
        assert found.dtype == x.dtype
        assert torch.allclose(found, expected, rtol=2.0 * torch.finfo(x.dtype).eps, atol=4.0 * torch.finfo(x.dtype).eps)


def test_read_like_a_tensor():
    """Code from outside that reads the weight gets what it expects of a tensor."""
    packed = PackedWeight.from_tensor(weight_of((5, 24)), QuantSpec())
    plain = packed.dequantize()
    assert packed.shape == plain.shape == packed.size()
    assert (packed.size(1), packed.ndim, packed.numel(), len(packed)) == (24, 2, 120, 5)
    assert (packed.dtype, packed.device, packed.requires_grad) == (plain.dtype, plain.device, False)
    for found, expected in [
        (packed.data, plain),
        (packed.T, plain.T),
        (packed.t(), plain.t()),
        (packed[2], plain[2]),
        (packed.abs().mean(), plain.abs().mean()),
        (torch.cat([packed, plain]), torch.cat([plain, plain])),
        (plain.T @ packed, plain.T @ plain),
        (packed @ plain.T, plain @ plain.T),
        (packed.to(torch.float16), plain.half()),
        (packed.bfloat16(), plain.bfloat16()),
    ]:
        assert torch.equal(found, expected)
    assert packed.dtype == torch.float32
    with pytest.raises(AttributeError):
        packed.no_such_name  # noqa: B018


def test_casts_of_the_model_leave_levels_alone():
    """model.to(dtype) changes the dtype in which a weight shows itself, never its planes."""
    model = nn.Sequential(nn.Linear(24, 10), nn.Linear(10, 4))
    attach(model[0], "weight", PackedWeight.from_tensor(model[0].weight.bfloat16(), QuantSpec()))
    before = {name: plane.clone() for name, plane in model[0].weight.planes().items()}
    for cast in (model.half, model.double, model.bfloat16, lambda: model.to(torch.float16)):
        cast()
        assert model[0].weight.dtype == model[1].weight.dtype
        assert model(torch.zeros(1, 24, dtype=model[1].weight.dtype)).dtype == model[1].weight.dtype
    after = model[0].weight.planes()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_moves():
    """Planes move with the model, and a model of the meta device has meta planes."""
    layer = nn.Linear(24, 10)
    attach(layer, "weight", PackedWeight.from_tensor(layer.weight, QuantSpec()))
    layer.to("meta")
    assert layer.weight.codes.is_meta
    assert layer.weight.device.type == "meta"
    layer.to_empty(device="cpu")
    for plane in layer.weight.buffers():
        plane.zero_()  # whatever lies in memory that was never written to may overflow
    assert layer.weight.dequantize().shape == (10, 24)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_bits():  # pragma: no cover
    """A GPU decodes to the bits of the CPU."""
    packed = PackedWeight.from_tensor(weight_of((64, 100)), QuantSpec())
    assert torch.equal(copy.deepcopy(packed).to("cuda").dequantize().cpu(), packed.dequantize())


def test_state_dict_has_the_names_of_the_format():
    """state_dict names are those of docs/format.md, and it loads back into such a layer; another shape is refused."""
    layer, other = nn.Linear(24, 10), nn.Linear(24, 10)
    for seed, one in enumerate((layer, other)):
        attach(one, "weight", PackedWeight.from_tensor(weight_of((10, 24), seed=seed), QuantSpec()))
    state = layer.state_dict()
    names = ("codes", "clusters", "scale", "offset", "row_scale", "shape")
    assert set(state) == {"bias", *(f"weight.{name}" for name in names)}
    other.load_state_dict(state)
    assert other.weight.same_planes(layer.weight)
    state["weight.shape"] = torch.tensor([24, 10])
    with pytest.raises(RuntimeError, match=r"weight\.shape is \[24, 10\]; expected \[10, 24\]"):
        other.load_state_dict(state)
    del state["weight.shape"]
    with pytest.raises(RuntimeError, match=r"Missing key.*weight\.shape"):
        other.load_state_dict(state)


def test_copies_and_pickles():
    """A packed layer can be copied and pickled."""
    import io

    layer = nn.Linear(24, 10)
    attach(layer, "weight", PackedWeight.from_tensor(layer.weight, QuantSpec()))
    assert copy.deepcopy(layer).weight.same_planes(layer.weight)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=False).weight.same_planes(layer.weight)


def test_gradients_pass_through():
    """The input of a packed layer gets its gradient; the weight gets none."""
    layer = nn.Linear(24, 10)
    attach(layer, "weight", PackedWeight.from_tensor(layer.weight, QuantSpec()))
    x = weight_of((2, 24)).requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad[0], layer.weight.dequantize().sum(0))


def test_unpack_all():
    """unpack_all puts parameters back, one for weights that are shared."""
    model = nn.ModuleDict({"embed": nn.Embedding(10, 24), "head": nn.Linear(24, 10)})
    packed = PackedWeight.from_tensor(model["embed"].weight, EMBEDDING)
    attach(model["embed"], "weight", packed)
    attach(model["head"], "weight", packed)
    assert [name for name, _ in packed_weights(model)] == ["embed.weight", "head.weight"]
    unpack_all(model, torch.bfloat16)
    assert model["embed"].weight is model["head"].weight
    assert torch.equal(model["head"].weight, packed.dequantize(torch.bfloat16))


@pytest.mark.parametrize("axis", [1, 2])
def test_stacked(axis):
    """A stack of matrices decodes to the stack of the decoded matrices."""
    weight, spec = weight_of((3, 8, 12)), QuantSpec(bits=3)
    parts = [quantize_array(matrix.numpy(), spec, axis - 1) for matrix in weight]
    names = planes_from(parts[0])
    planes = {name: torch.stack([planes_from(part)[name] for part in parts]) for name in names}
    packing = Weight((3, 8, 12), axis, spec, "fp32", stack=True)
    check_planes("x", packing, {**planes, "shape": torch.tensor([3, 8, 12])})
    assert np.array_equal(decode(planes, packing).numpy(), np.stack([part.dequantize() for part in parts]))


@pytest.mark.parametrize("weight", [torch.tensor([[1.0, torch.nan]]), torch.tensor([[1.0, torch.inf]])])
def test_nan_and_infinity(weight):
    """NaN and infinity cannot be quantized."""
    with pytest.raises(TensorError, match="NaN or infinity"):
        PackedWeight.from_tensor(weight, QuantSpec())


def test_integers():
    """Only floats can be quantized."""
    with pytest.raises(TensorError, match=r"dtype is torch\.int64"):
        PackedWeight.from_tensor(torch.tensor([[1, 2]]), QuantSpec())


@pytest.mark.parametrize(
    ("module", "name"), [(nn.LayerNorm(4), "weight"), (nn.Linear(4, 4), "bias"), (nn.LSTM(4, 4), "weight_ih_l0")]
)
def test_other_parameters_are_not_carried(module, name):
    """Only the weights of known layers can be packed."""
    assert not can_carry(module, name, tuple(getattr(module, name).shape))


@pytest.mark.parametrize("granularity", ["channel", "group:7"])
def test_own_zero_points(granularity):
    """One per row or group, which decodes to 0; a module has no scale or offset then."""
    spec = QuantSpec(3, 1, granularity=granularity)
    w = torch.randn(6, 20) + torch.randn(6, 1)
    packed, split = PackedWeight.from_tensor(w, spec), quantize_array(w.numpy(), spec)
    assert packed.zero_point().tolist() == split.zero_point.tolist()
    assert set(packed.state_dict()) == {"codes", "row_scale", "zero_points", "shape"}
    each = np.repeat(split.zero, spec.group_size(20), axis=1)[:, :20]
    assert (packed.dequantize().numpy()[split.unpacked_codes() == each] == 0).all()
    rows = packed.lookup(torch.tensor([4, 0]))
    assert torch.equal(rows, packed.dequantize()[[4, 0]])
