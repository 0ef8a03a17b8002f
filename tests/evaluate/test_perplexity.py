"""Perplexity and divergence against what the model's own logits give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from splitquant.errors import SpecError
from splitquant.evaluate import KeptReference, LanguageModel, Run, divergence, open_language_model, perplexity
from splitquant.evaluate.texts import cut

TEXT = "The cat sat on the mat; the dog did not. Größe zählt. " * 4


def log_probs(model, windows):
    """The log-probabilities of all tokens at all scored positions, and the tokens that came."""
    rows, targets = [], []
    for one in windows.windows:
        with torch.no_grad():
            logits = model.model(torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
        rows.append(logits[-1 - one.scored : -1])
        targets += one.ids[-one.scored :]
    return torch.cat(rows), torch.tensor(targets)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize(("window", "stride"), [(32, None), (32, 10), (128, None)])
@pytest.mark.parametrize("batch", [1, 3])
def test_perplexity(language_model, begins, window, stride, batch):
    """The loss is the mean over the scored tokens, whatever the batch."""
    model = language_model(begins=begins)
    found = perplexity(model, TEXT, window=window, stride=stride, run=Run(batch))
    rows, targets = log_probs(model, cut(model.tokenizer, TEXT, window=window, stride=stride))
    losses = -rows[torch.arange(len(targets)), targets]
    assert found.loss.value == pytest.approx(float(losses.mean()), abs=1e-5)
    assert found.loss.error == pytest.approx(float(losses.std()) / math.sqrt(len(losses)), rel=1e-4)
    assert found.perplexity.value == pytest.approx(math.exp(float(losses.mean())), rel=1e-4)
    assert found.perplexity.error == pytest.approx(found.perplexity.value * found.loss.error)
    assert found.bits_per_byte.value == pytest.approx(float(losses.sum()) / math.log(2) / found.text.nbytes, rel=1e-5)


def test_documents_of_ids(language_model):
    """Documents of ids are scored one by one, and have no bytes."""
    model = language_model()
    found = perplexity(model, [[1, 5, 6, 7], [1, 9]])
    expected = [log_probs(model, cut(None, [ids], longest=128)) for ids in ([1, 5, 6, 7], [1, 9])]
    losses = [-float(rows[i, t]) for rows, targets in expected for i, t in enumerate(targets)]
    assert found.loss.value == pytest.approx(np.mean(losses), abs=1e-5)
    assert found.bits_per_byte is None
    assert found.to_dict()["bits_per_byte"] is None


@pytest.mark.parametrize("keep_bytes", [1 << 30, 0])
@pytest.mark.parametrize("rows", [1000, 3])
def test_divergence(language_model, keep_bytes, rows):
    """KL(float || quantized) and the share of equal likeliest tokens, with the log-probabilities kept or computed again."""
    one, other = language_model(), language_model(seed=1)
    one.__dict__["rows_at_once"] = rows
    kept = KeptReference(one, TEXT, window=40, keep_bytes=keep_bytes, run=Run(2))
    found = divergence(kept, other)
    windows = cut(one.tokenizer, TEXT, window=40)
    (p, _), (q, _) = log_probs(one, windows), log_probs(other, windows)
    assert found.kl.value == pytest.approx(float(((p - q) * p.exp()).sum(-1).mean()), abs=1e-5)
    assert found.agreement.value == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.reference.loss.value == pytest.approx(perplexity(one, TEXT, window=40).loss.value, abs=1e-6)
    assert found.quantized.loss.value == pytest.approx(perplexity(other, TEXT, window=40).loss.value, abs=1e-6)
    assert 0 < found.kl.error < found.kl.value


def test_a_model_does_not_differ_from_itself(language_model):
    """KL is 0 and every likeliest token the same."""
    found = divergence(language_model(), language_model(), TEXT, window=40)
    assert found.kl.value == pytest.approx(0, abs=1e-6)
    assert found.agreement.value == 1


def test_other_vocabularies(language_model):
    """Only models with the same tokens can be compared."""
    import transformers

    from builders.language_models import KINDS, byte_tokenizer

    config = transformers.LlamaConfig(**(KINDS["llama"][1] | {"vocab_size": 300}))
    other = LanguageModel(transformers.LlamaForCausalLM(config), byte_tokenizer(begins=True), name="big")
    with pytest.raises(SpecError, match="llama has 259 tokens and big 300"):
        divergence(language_model(), other, TEXT)
    with pytest.raises(SpecError, match="needs a text"):
        divergence(language_model(), other)


def test_resume(folders, tmp_path):
    """What was finished is taken from the state: the second time no window is read by the quantized model."""
    one, other = (open_language_model(folder) for folder in folders)
    run = Run(2, state=tmp_path / "state")
    first = divergence(one, other, TEXT, window=40, run=run)
    lines = (tmp_path / "state").read_text().splitlines()
    (tmp_path / "state").write_text("\n".join(lines[:3]) + "\n")
    assert divergence(one, other, TEXT, window=40, run=run) == first
    assert sorted((tmp_path / "state").read_text().splitlines()) == sorted(lines)
    calls = []
    other.model.register_forward_hook(lambda *_: calls.append(1))
    assert other.vocabulary == 259
    calls.clear()
    assert divergence(one, other, TEXT, window=40, run=run) == first
    assert calls == []
