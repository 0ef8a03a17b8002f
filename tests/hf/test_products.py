"""Loaded models multiply with packed weights by kernels, and say nearly what they say with decoded ones."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra 'hf' is not installed")
pytest.importorskip("transformers", reason="the extra 'hf' is not installed")

import splitquant  # noqa: E402
from splitquant.core.products import product_kernel  # noqa: E402
from splitquant.torch import packed as packed_module  # noqa: E402

if not product_kernel():
    pytest.skip("there are no compiled kernels of products", allow_module_level=True)

BY_KERNEL = packed_module._by_kernel
NAMES = ["llama", "llama-tied", "llama-bf16", "gemma3", "bert", "gpt2", "opt", "mixtral", "t5", "whisper", "vit"]


@pytest.fixture(autouse=True)
def decoded():
    """Here the kernels stay in use."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_models_say_nearly_what_decoded_weights_say(folders, run, name, dtype, monkeypatch):
    """Every kind of model calls the kernels, and its output is that of decoded weights but for the rounding of its dtype."""
    calls = []

    def counted(*arguments):
        found = BY_KERNEL(*arguments)
        calls.append(found is not None)
        return found

    model = splitquant.load(folders(name).packed, dtype=dtype)
    monkeypatch.setattr(packed_module, "_by_kernel", counted)
    found = run(model, name).double()
    assert sum(calls) >= (1 if product_kernel() == "portable" else 4)  # which leave many tokens to PyTorch
    monkeypatch.setattr(packed_module, "_by_kernel", lambda *_: None)
    expected = run(model, name).double()
    error, size = (found - expected).norm(), expected.norm()
    # A 16-bit weight is rounded before it is multiplied where it is decoded, and a level is where it is not.
    assert error <= size * (0.03 if dtype == torch.bfloat16 else 0.004)


def test_generated_text_does_not_depend_on_the_batch(folders):
    """A prompt alone and beside others gives the same numbers."""
    model = splitquant.load(folders("llama").packed)
    ids = torch.randint(1, 90, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.model.layers[0].mlp.gate_proj(torch.randn(3, 7, 32))
        assert hidden.shape == (3, 7, 48)
        together = model.generate(ids, max_new_tokens=4, do_sample=False)
        alone = [model.generate(row[None], max_new_tokens=4, do_sample=False)[0] for row in ids]
    assert torch.equal(together, torch.stack(alone))
