"""Models as PyTorch exports them: a transformer, a ResNet, a Llama with past key values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import splitquant.onnx as sqo
from builders.onnx_models import run, sqnr
from splitquant import QuantSpec

pytestmark = pytest.mark.filterwarnings("ignore")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")


def exported(module, args, path, inputs, outputs, **options):
    torch.manual_seed(0)
    torch.onnx.export(
        module.eval(),
        args,
        path,
        dynamo=True,
        verbose=False,
        opset_version=18,
        input_names=inputs,
        output_names=outputs,
        **options,
    )
    return path


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer, self.head = torch.nn.Embedding(50, 32), layer, torch.nn.Linear(32, 50)

        def forward(self, ids):
            return self.head(self.layer(self.embed(ids)))

    torch.backends.mha.set_fastpath_enabled(False)
    path = tmp_path_factory.mktemp("transformer") / "m.onnx"
    shapes = {"ids": {1: torch.export.Dim("sequence", min=2, max=64)}}
    return exported(Model(), (torch.randint(0, 50, (1, 7)),), path, ["ids"], ["logits"], dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    class Block(torch.nn.Module):
        def __init__(self, n, m, stride):
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(n, m, 3, stride, 1), torch.nn.Conv2d(m, m, 3, 1, 1)
            self.short = torch.nn.Conv2d(n, m, 1, stride)

        def forward(self, x):
            return torch.relu(self.two(torch.relu(self.one(x))) + self.short(x))

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 1, 1),
        Block(8, 8, 1),
        Block(8, 16, 2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 10),
    )
    path = tmp_path_factory.mktemp("resnet") / "m.onnx"
    return exported(net, (torch.randn(1, 3, 16, 16),), path, ["image"], ["scores"])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    from transformers.cache_utils import DynamicCache

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.llama = transformers.LlamaForCausalLM(config)

        def forward(self, input_ids, attention_mask, key, value):
            cache = DynamicCache()
            cache.update(key, value, 0)
            out = self.llama(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
            layer = out.past_key_values.layers[0]
            return out.logits, layer.keys, layer.values

    # Two tensors for the past: of one given twice, the exporter makes one input.
    past = torch.randn(1, 1, 3, 16), torch.randn(1, 1, 3, 16)
    args = (torch.randint(0, 64, (1, 4)), torch.ones(1, 7, dtype=torch.long), *past)
    names = ["input_ids", "attention_mask", "past.key", "past.value"]
    path = tmp_path_factory.mktemp("llama") / "m.onnx"
    made = Model()
    exported(made, args, path, names, ["logits", "key", "value"])
    feeds = {name: array.numpy() for name, array in zip(names, args, strict=True)}
    with torch.no_grad():
        wanted = [array.numpy() for array in made(*args)]
    return path, feeds, wanted


@pytest.mark.parametrize("name", ["transformer", "resnet", "llama"])
@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
def test_exports(name, form, request, tmp_path):
    """Every linear and convolution layer is converted, the checker accepts the result, the outputs are near."""
    source = request.getfixturevalue(name)
    source = source[0] if name == "llama" else source
    out = tmp_path / "out.onnx"
    spec = QuantSpec(bits=4, clusters=3, layout="parallel")
    done = sqo.split(source, out, spec) if form == "float" else sqo.quantize(source, out, spec, format=form)
    for node in done.report.kept:
        if node.kind in ("MatMul", "Gemm", "Conv"):
            assert node.reason.startswith(("no input is a constant", "would not get smaller")) or len(node.shape) <= 1
    assert len(done.report.changed) >= {"transformer": 5, "resnet": 7, "llama": 8}[name] - (2 if form != "float" else 0)
    found = sqo.verify(source, out)
    assert found.worst_sqnr_db > (100 if form == "float" else 12)
    if form != "float" and name == "llama":
        assert found.branches == found.in_kernels > 0


@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
def test_a_llama_with_a_past_is_near_pytorch(llama, form):
    """The converted model computes what PyTorch does, past keys and values included."""
    source, feeds, wanted = llama
    spec = QuantSpec(bits=8, clusters=1)
    done = sqo.split(source) if form == "float" else sqo.quantize(source, spec=spec, format=form)
    for before, array, after in zip(wanted, run(source, feeds), run(done.model, feeds), strict=True):
        assert sqnr(before, array) > 100
        assert sqnr(before, after) > (100 if form == "float" else 25)
    assert not np.array_equal(run(done.model, {**feeds, "past.value": feeds["past.key"]})[0], run(done.model, feeds)[0])


def test_dynamic_shapes_stay(transformer):
    """An input with an open dimension keeps it, and other lengths run."""
    done = sqo.quantize(transformer)
    dims = done.model.graph.input[0].type.tensor_type.shape.dim
    assert dims[1].dim_param
    for length in (3, 11):
        sqo.verify(transformer, done.model, {"ids": np.arange(length)[None]})


def test_converted_model_can_be_loaded_by_onnx(resnet):
    """The result passes the full check with shape inference."""
    onnx.checker.check_model(sqo.quantize(resnet).model, full_check=True)
