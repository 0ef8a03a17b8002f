"""Products with packed weights: the error is bounded, and neither batches nor threads change a bit."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from splitquant.core import products as core_products  # noqa: E402
from splitquant.core.spec import EMBEDDING, QuantSpec  # noqa: E402
from splitquant.torch import PackedWeight, products  # noqa: E402

if not core_products.product_kernel():
    pytest.skip("there are no compiled kernels of products", allow_module_level=True)
import splitquant._native as native  # noqa: E402

KERNELS = native.product_kernels()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPECS = [
    *(
        QuantSpec(),
        QuantSpec(clusters=3),
        EMBEDDING,
        QuantSpec(granularity="tensor"),
        QuantSpec(granularity="group:64"),
    ),
    *(QuantSpec(bits=bits, clusters=1) for bits in range(2, 9)),
    *(QuantSpec(bits=4, clusters=1, granularity=f"group:{n}") for n in (8, 32, 48, 256)),
    *(QuantSpec(bits=8, clusters=1, granularity="group:32"), QuantSpec(bits=3, granularity="group:7")),
    *(
        QuantSpec(bits=2, clusters=4),
        QuantSpec(bits=3, clusters=8),
        QuantSpec(bits=4, clusters=8),
        QuantSpec(bits=4, clusters=2),
    ),
    *(
        QuantSpec(bits=5, clusters=4),
        QuantSpec(bits=6, clusters=4),
        QuantSpec(bits=5, clusters=2),
        QuantSpec(bits=5, clusters=8),
    ),
    *(QuantSpec(strategy="lloyd", bits=b, clusters=k) for b, k in ((4, 4), (8, 1), (2, 2))),
    *(QuantSpec(strategy="residual", bits=b, clusters=k) for b, k in ((4, 2), (2, 3), (3, 2))),
    QuantSpec(bits=3, clusters=3, strategy="magnitude"),
    *(QuantSpec(bits=4, clusters=1, zero_points="shared"), QuantSpec(bits=8, clusters=1, zero_points="shared")),
    *(QuantSpec(bits=3, clusters=1, granularity="group:32"), QuantSpec(bits=5, clusters=1, granularity="group:64")),
]
SHAPES = [(1, 1), (1, 5), (3, 8), (7, 100), (16, 128), (33, 300), (40, 515), (20, 1024)]


@pytest.fixture(autouse=True)
def _kernel_of_this_machine():
    yield
    native.set_product_kernel(KERNELS[-1])


def packed_of(rows, cols, spec, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator) * torch.rand(rows, 1, generator=generator)
    return PackedWeight.from_tensor(weight.to(dtype), spec)


def inputs_of(*shape, dtype, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def decibels(reference, found):
    noise = (found.double() - reference).square().sum()
    return float(10 * torch.log10(reference.square().sum() / noise.clamp(min=1e-300)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_products_stay_within_their_bound(spec, kernel):
    """Every element is as near to the exact product as levels and results of the input's dtype allow: at least 50 dB."""
    native.set_product_kernel(kernel)
    for rows, cols in SHAPES:
        packed = packed_of(rows, cols, spec)
        weight = packed.dequantize(torch.float64)
        for dtype in DTYPES:
            x, bias = inputs_of(9, cols, dtype=dtype), inputs_of(rows, dtype=dtype, seed=2)
            found = functional.linear(x, packed, bias)
            expected = x.double() @ weight.T + bias.double()
            terms = x.double().abs() @ weight.abs().T + bias.double().abs()
            of_levels = 2.0**-9 if dtype == torch.bfloat16 else 0.0
            of_results = torch.finfo(dtype).eps / 2
            bound = (of_levels + (cols + 8) * 2.0**-24) * terms + of_results * 1.01 * expected.abs() + 1e-7
            assert found.dtype == dtype
            assert bool(((found.double() - expected).abs() <= bound).all())
            if rows * cols >= 2048:
                assert decibels(expected, found) >= 50


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SPECS),
    st.sampled_from(KERNELS),
    st.sampled_from(DTYPES),
    st.integers(1, 70),
    st.integers(1, 400),
    st.lists(st.integers(0, 13), min_size=1, max_size=4),
    st.integers(1, 4),
)
def test_batches_and_threads_change_no_bit(spec, kernel, dtype, rows, cols, batches, threads):
    """A token's result is the same in any batch, and for any number of threads."""
    native.set_product_kernel(kernel)
    packed, x = packed_of(rows, cols, spec), inputs_of(sum(batches), cols, dtype=dtype)
    whole = functional.linear(x, packed)
    alone = [functional.linear(token, packed) for token in x]
    parts = [functional.linear(part, packed) for part in x.split(batches)]
    torch.set_num_threads(threads)
    try:
        shared = functional.linear(x, packed)
    finally:
        torch.set_num_threads(1)
    assert whole.shape == (sum(batches), rows)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(shared, whole)
    assert all(torch.equal(one, row) for one, row in zip(alone, whole, strict=True))


def test_large_products_on_several_threads():
    """Where there is enough to do for threads to be woken, the bits are still those of one."""
    packed, x = packed_of(700, 1030, QuantSpec()), inputs_of(33, 1030, dtype=torch.bfloat16)
    one = functional.linear(x, packed)
    torch.set_num_threads(3)
    try:
        assert torch.equal(functional.linear(x, packed), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("spec", [QuantSpec(), EMBEDDING, QuantSpec(bits=4, clusters=1)], ids=str)
def test_planes_may_lie_anywhere(spec):
    """Planes straight from a mapped file begin at any byte, and nothing behind the last one is read as a weight."""
    packed = packed_of(5, 200, spec)
    expected = functional.linear(inputs_of(3, 200, dtype=torch.float32), packed)
    for name in ("codes", "clusters"):
        plane = packed._buffers.get(name)
        if plane is not None:
            room = torch.full((plane.numel() + 5,), 255, dtype=torch.uint8)
            moved = room[3 : 3 + plane.numel()].view(plane.shape)
            packed._buffers[name] = moved.copy_(plane)
    assert torch.equal(functional.linear(inputs_of(3, 200, dtype=torch.float32), packed), expected)


def test_gradients_are_those_of_the_decoded_weight():
    """Inputs and biases learn as with floats, twice if asked; the weight is frozen."""
    packed = packed_of(12, 40, QuantSpec())
    weight = packed.dequantize()
    for shape in ((5, 40), (2, 3, 40), (40,)):
        x, bias = inputs_of(*shape, dtype=torch.float32).requires_grad_(), torch.randn(12, requires_grad=True)
        functional.linear(x, packed, bias).square().sum().backward()
        of_x, of_bias = x.grad.clone(), bias.grad.clone()
        x.grad = bias.grad = None
        functional.linear(x, weight, bias).square().sum().backward()
        assert torch.allclose(of_x, x.grad, rtol=1e-5, atol=1e-5)
        assert torch.allclose(of_bias, bias.grad, rtol=1e-5, atol=1e-5)
    x = inputs_of(4, 40, dtype=torch.float64).float().requires_grad_()
    (first,) = torch.autograd.grad(functional.linear(x, packed).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    (expected,) = torch.autograd.grad(functional.linear(x, weight).pow(3).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(second, twice, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_gradients_come_in_blocks_of_rows(dtype, monkeypatch):
    """Blocks of rows of any size give the gradient of the whole."""
    monkeypatch.setattr(products, "_MOST_DECODED", 100)
    packed = packed_of(23, 48, QuantSpec(granularity="group:16"))
    x = inputs_of(4, 48, dtype=dtype).requires_grad_()
    functional.linear(x, packed).sum().backward()
    assert decibels(packed.dequantize(torch.float64).sum(0).expand(4, -1), x.grad) >= 45


def test_the_operators_are_as_pytorch_expects():
    """torch.library's own checks: schema, fake tensors, gradients under compilation."""
    packed = packed_of(6, 24, QuantSpec())
    planes = [packed._buffers.get(name) for name in core_products.PLANES]
    x, bias = torch.randn(3, 24, requires_grad=True), torch.randn(6, requires_grad=True)
    numbers = list(packed._numbers)
    torch.library.opcheck(torch.ops.splitquant.linear.default, (x, *planes, bias, numbers))
    torch.library.opcheck(torch.ops.splitquant.linear_input_grad.default, (torch.randn(3, 6), *planes, numbers))


def test_compiled_models_keep_the_kernel():
    """torch.compile records the operator, in one graph."""
    layer = nn.Linear(24, 6)
    packed = PackedWeight.from_tensor(layer.weight, QuantSpec())
    del layer.weight
    layer.weight = packed
    x, graphs = torch.randn(3, 24), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, backend=backend, fullgraph=True)(x), layer(x))
    assert any("splitquant" in str(node.target) for node in graphs[0].graph.nodes)


def test_transforms_of_functions_see_plain_operations():
    """vmap, jvp and forward-mode differentiation work as with a float weight."""
    packed = packed_of(6, 24, QuantSpec())
    weight, x = packed.dequantize(), torch.randn(5, 24)
    mapped = torch.func.vmap(lambda row: functional.linear(row, packed))(x)
    assert torch.allclose(mapped, functional.linear(x, weight), atol=1e-5)
    _, tangent = torch.func.jvp(lambda value: functional.linear(value, packed), (x,), (torch.ones_like(x),))
    assert torch.allclose(tangent, functional.linear(torch.ones_like(x), weight), atol=1e-5)


def test_transposed_layers_have_the_kernel_too(monkeypatch):
    """GPT-2's Conv1D, an addmm with a weight of [in, out]."""
    generator = torch.Generator().manual_seed(0)
    packed = PackedWeight.from_tensor(torch.randn(40, 24, generator=generator), QuantSpec(), axis=1)
    x, bias = torch.randn(5, 40), torch.randn(24)
    expected = torch.addmm(bias, x, packed.dequantize())
    monkeypatch.setattr(PackedWeight, "dequantize", None)
    assert torch.allclose(torch.addmm(bias, x, packed), expected, atol=1e-5)


def test_wrong_inputs_get_the_error_of_pytorch():
    """A wrong width or dtype says what it says with a float weight."""
    packed = packed_of(6, 24, QuantSpec())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        functional.linear(torch.randn(3, 23), packed)
    with pytest.raises(RuntimeError):
        functional.linear(torch.randint(0, 9, (3, 24)), packed)


def test_empty_inputs():
    """No tokens give no results, of the right shape."""
    packed = packed_of(6, 24, QuantSpec())
    assert functional.linear(torch.empty(0, 24), packed).shape == (0, 6)
    assert functional.linear(torch.empty(2, 0, 24), packed, torch.zeros(6)).shape == (2, 0, 6)


def test_inputs_that_are_not_contiguous():
    """Slices and transposed inputs are copied."""
    packed = packed_of(6, 24, QuantSpec())
    x = torch.randn(24, 8)
    assert torch.equal(functional.linear(x.T, packed), functional.linear(x.T.contiguous(), packed))
    assert torch.equal(functional.linear(x.T[::2], packed), functional.linear(x.T[::2].contiguous(), packed))


def test_not_a_number_and_infinity_are_passed_on():
    """What is no finite number reaches the results of its token, and of no other."""
    packed = packed_of(6, 150, QuantSpec())
    for dtype in DTYPES:
        x = inputs_of(3, 150, dtype=dtype)
        clean = functional.linear(x, packed)
        x[1, 149] = float("nan")
        found = functional.linear(x, packed)
        assert bool(found[1].isnan().all())
        assert torch.equal(found[::2], clean[::2])
        x[1, 149] = float("inf")
        assert not bool(functional.linear(x, packed)[1].isfinite().any())


def test_what_has_no_kernel_is_decoded_and_said_once(caplog):
    """A code and an id of more than 8 bits: the layer works, and one line says why it is slow."""
    products._say.cache_clear()
    packed = packed_of(6, 24, QuantSpec(bits=8, clusters=3))
    x = torch.randn(3, 24)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(functional.linear(x, packed), functional.linear(x, packed.dequantize()))
        functional.linear(x, packed)
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(
        "weights are decoded to floats in every product, which is slow (INT8 k=3 min_error channel: "
    )
    assert said.endswith("a code and its cluster id have 10 bits, and kernels take up to 8)")
    assert "product decoded" in repr(packed)
    assert f"product {KERNELS[-1]}" in repr(packed_of(6, 24, QuantSpec()))


def test_copies_and_pickles_keep_the_kernel():
    """A copy multiplies as the original does."""
    packed, x = packed_of(6, 24, QuantSpec()), torch.randn(3, 24)
    expected = functional.linear(x, packed)
    for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert again._numbers == packed._numbers
        assert torch.equal(functional.linear(x, again), expected)


def test_kernels_can_be_switched_off():
    """SPLITQUANT_PRODUCTS=decode: the results are those of the decoded weight, bit for bit."""
    code = (
        "import torch; from splitquant.torch import PackedWeight; from splitquant.core.spec import QuantSpec\n"
        "w = torch.randn(9, 40); p = PackedWeight.from_tensor(w, QuantSpec()); x = torch.randn(3, 40)\n"
        "same = torch.equal(torch.nn.functional.linear(x, p), torch.nn.functional.linear(x, p.dequantize()))\n"
        "print(same, 'product decoded' in repr(p))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"SPLITQUANT_PRODUCTS": "decode"}, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "True"]


def test_portable_kernels_leave_many_tokens_to_pytorch():
    """Without a fast kernel of this CPU, more than eight tokens take the decoded weight, bit for bit."""
    code = (
        "import torch; from splitquant.torch import PackedWeight; from splitquant.core.spec import QuantSpec\n"
        "w = torch.randn(9, 40); p = PackedWeight.from_tensor(w, QuantSpec()); x = torch.randn(9, 40)\n"
        "from splitquant.torch import packed; calls = []; linear = packed.linear\n"
        "packed.linear = lambda *a: calls.append(len(a[0])) or linear(*a)\n"
        "f = torch.nn.functional.linear; same = torch.equal(f(x, p), f(x, p.dequantize()))\n"
        "f(x[:8], p); print(same, calls)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"SPLITQUANT_PRODUCTS": "portable"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True [8]\n"


def test_damaged_planes_read_nothing_outside():
    """An id beyond the last cluster means the last level, with all kernels."""
    packed = packed_of(5, 200, QuantSpec(clusters=3, granularity="tensor"))
    packed.clusters.fill_(255)
    packed.codes.fill_(255)
    x = torch.randn(3, 200)
    last = packed.scale[2] * 15 + packed.offset[2]
    for kernel in KERNELS:
        native.set_product_kernel(kernel)
        found = functional.linear(x, packed)
        assert torch.allclose(found, (x.sum(1, keepdim=True) * last).expand(3, 5), rtol=1e-4, atol=1e-4)
