"""A converted model is an ordinary module: saved, copied, cast, hooked, traced, compiled and exported like any other."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import splitquant.torch as sqt
from splitquant import PAPER, QuantSpec

K = 3


class Net(nn.Module):
    """A convolution, a depthwise one, a transposed one and a Linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, stride=2)
        self.up = nn.ConvTranspose2d(8, 2, 2, stride=2)
        self.head = nn.Linear(72, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.conv1(x)))
        return self.head(self.up(self.depthwise(x)).flatten(1))


LAYERS = ("conv1", "depthwise", "up", "head")
CONVERSIONS = {
    "split": lambda model: sqt.split(model).model,
    "parallel": lambda model: sqt.quantize(model, PAPER).model,
    "fused": lambda model: sqt.quantize(model, QuantSpec()).model,
    "parallel, int8-tensor": lambda model: sqt.quantize(model, PAPER, activations="int8-tensor").model,
    "fused, int8-token": lambda model: sqt.quantize(model, QuantSpec(), activations="int8-token").model,
}


@pytest.fixture(params=CONVERSIONS)
def convert(request):
    return CONVERSIONS[request.param]


@pytest.fixture
def made(convert):
    """A converted model, a batch, and its output."""
    model, x = convert(Net().eval()), torch.randn(2, 3, 7, 7)
    with torch.no_grad():
        return model, x, model(x)


def products(graph):
    """How many convolutions and matrix products a graph of ATen operations has."""
    names = {f"aten.{name}.default" for name in ("convolution", "linear", "addmm", "mm")}
    names |= {"aten.conv2d.default", "aten.conv2d.padding", "aten.conv_transpose2d.input"}
    return sum(str(node.target) in names for node in graph.nodes)


def test_state_dict(convert):
    """A state_dict loads strictly into a model that was converted alike, whatever its values were."""
    one, other = convert(Net()), convert(Net())
    x = torch.randn(2, 3, 7, 7)
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(one.eval()(x), other.eval()(x))
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)


def test_names():
    """Names can be read: the parts of conv1 are conv1.parts.0 and so on."""
    split = CONVERSIONS["split"](Net())
    assert {"conv1", "conv1.parts", "conv1.parts.0", "conv1.parts.2"} <= set(dict(split.named_modules()))
    assert [n for n in split.state_dict() if n.startswith("conv1.")] == [
        "conv1.parts.0.weight",
        "conv1.parts.0.bias",
        "conv1.parts.1.weight",
        "conv1.parts.2.weight",
    ]
    assert "the sum of 3 parts" in repr(split)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies(made, how):
    """A copy computes the same and shares nothing."""
    model, x, expected = made
    copied = how(model)
    assert torch.equal(copied(x), expected)
    mine = {tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    own = {name: t for name, t in copied.state_dict().items() if not name.endswith("weight.shape") and t.numel()}
    assert not any(tensor.data_ptr() in mine for tensor in own.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_casts(made, dtype):
    """to(dtype) casts what a user sees, and the output stays close."""
    model, x, expected = made
    found = model.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, atol=0.05)


def test_devices(made):
    """to(device) moves parts and planes alike (to the meta device, which every machine has)."""
    model, _, _ = made
    assert all(tensor.is_meta for tensor in [*model.to("meta").parameters(), *model.buffers()])


def test_train_and_eval(made):
    """train() and eval() reach every part."""
    model, _, _ = made
    model.train()
    assert all(module.training for module in model.modules())


def test_hooks():
    """Hooks of a layer move to the split layer: they fire once, see the whole output, and come back with merge."""
    model, calls = Net().eval(), []
    handle = model.conv1.register_forward_hook(lambda module, args, output: calls.append(output))
    model.head.register_forward_pre_hook(lambda module, args: calls.append("before head"))
    split, _ = sqt.split(model, inplace=True)
    expected = model(torch.randn(1, 3, 7, 7))
    assert len(calls) == 2
    assert calls[0].shape == (1, 8, 7, 7)
    handle.remove()
    split(torch.randn(1, 3, 7, 7))
    assert calls[2:] == ["before head"]
    sqt.merge(model, inplace=True).model(torch.randn(1, 3, 7, 7))
    assert calls[3:] == ["before head"]
    assert expected.shape == (1, 5)


@pytest.mark.parametrize("strict", [False, True])
def test_export(made, strict):
    """torch.export keeps the values and all k branches, also after decompositions and saving."""
    model, x, expected = made
    parallel = isinstance(model.conv1, sqt.SplitLayer)
    program = torch.export.export(model, (x,), strict=strict)
    assert torch.allclose(program.module()(x), expected, atol=1e-6)
    wanted = len(LAYERS) * (K if parallel else 1)
    assert products(program.graph) == wanted
    assert products(program.run_decompositions().graph) == wanted
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    assert torch.allclose(torch.export.load(buffer).module()(x), expected, atol=1e-6)


@pytest.mark.parametrize("strategy", ["magnitude", "residual", "lloyd"])
def test_every_strategy_is_exported_and_compiled(strategy):
    """Levels of every form are decoded by operations that export and compilation record."""
    model, _ = sqt.quantize(Net().eval(), QuantSpec(bits=3, clusters=2, strategy=strategy))
    x = torch.randn(2, 3, 7, 7)
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(torch.export.export(model, (x,)).module()(x), expected, atol=1e-6)
        torch.compiler.reset()
        assert torch.allclose(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected, atol=1e-6)
        assert torch.allclose(torch.jit.trace(model, x)(x), expected, atol=1e-6)
    fresh, _ = sqt.quantize(Net().eval(), QuantSpec(bits=3, clusters=2, strategy=strategy))
    fresh.load_state_dict(model.state_dict(), strict=True)
    fresh.norm = model.norm
    assert torch.equal(fresh(x), expected)


def test_export_of_a_transformer_layer():
    """Where a module also reads a split layer's weight from outside, its branches stay in the exported graph."""
    model = sqt.split(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()).model
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 5, 8),))
    assert products(program.graph) == 2 + 2 * K


def test_export_with_a_dynamic_batch():
    """The batch may stay open."""
    model, x = CONVERSIONS["split"](Net().eval()), torch.randn(2, 3, 7, 7)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    assert program.module()(torch.randn(7, 3, 7, 7)).shape == (7, 5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(made, backend):
    """torch.compile takes the whole model as one graph."""
    model, x, expected = made
    torch.compiler.reset()
    with torch.no_grad():
        found = torch.compile(model, backend=backend, fullgraph=True)(x)
    assert torch.allclose(found, expected, atol=1e-6)


def test_jit_trace(made):
    """torch.jit.trace, while PyTorch has it, records the decoding too, so that another input gets its own output."""
    model, x, _ = made
    other = torch.randn_like(x)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        assert torch.allclose(traced(other), model(other), atol=1e-6)


def test_fx():
    """A symbolic trace shows each part as a module with its name, and the k branches are there."""
    graph = torch.fx.symbolic_trace(CONVERSIONS["split"](Net().eval()))
    targets = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert [target for target in targets if ".parts." in target] == [f"{n}.parts.{c}" for n in LAYERS for c in range(K)]
    x = torch.randn(2, 3, 7, 7)
    assert torch.isfinite(graph(x)).all()


def test_onnx(made, tmp_path):
    """torch.onnx.export gives a file that ONNX Runtime runs to the same values, with all k branches in it."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    model, x, expected = made
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    found = runtime.InferenceSession(path).run(None, {"x": x.numpy()})[0]
    assert np.allclose(found, expected.numpy(), atol=1e-5)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    count = sum(kind in ("Conv", "ConvTranspose", "Gemm", "MatMul") for kind in kinds)
    assert count == len(LAYERS) * (K if isinstance(model.conv1, sqt.SplitLayer) else 1)
