"""The head at scored positions, the shared prefix, what is refused: each held against the model's own logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from builders.language_models import KINDS, build, byte_tokenizer, direct
from splitquant.errors import SourceError
from splitquant.evaluate.model import LanguageModel, open_language_model
from splitquant.evaluate.scoring import Asked, log_likelihoods

ASKED = [
    Asked((1, 50, 60, 70), ((80,), (81, 82, 83), (84, 85))),
    Asked((1, 9, 8, 7), ((6, 5), (4,))),
]
MIXED = [*ASKED, Asked((1, 44), ((45, 46, 47, 48, 49, 50), (51,)))]
LONG = [Asked(tuple(range(10, 40)), ((1, 2, 3), (4,)))]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_models_own(kind):
    """For every architecture, with the prefix shared or not, and beyond a sliding window."""
    model = LanguageModel(build(kind))
    assert model._head is not None
    assert model.shares_prefixes
    for asked in (ASKED, MIXED, LONG):
        for one, found in zip(asked, log_likelihoods(model, asked), strict=True):
            assert found == pytest.approx([direct(model.model, one.context, a) for a in one.answers], abs=2e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_what_is_forgotten_is_not_shared(kind):
    """A sliding window ends what a cache is repeated for."""
    assert LanguageModel(build(kind)).longest_shared == {"llama": 128, "gemma3": 16}[kind]


def test_without_a_cache_wholes_are_read():
    """A model that cannot go on from a cache gives the same scores."""
    model = LanguageModel(build("llama"))
    expected = log_likelihoods(model, ASKED)
    model.__dict__["shares_prefixes"] = False
    for one, other in zip(expected, log_likelihoods(model, ASKED), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


class Odd(torch.nn.Module):
    """A model whose logits are not what its head says."""

    def __init__(self):
        super().__init__()
        self.inner, self.config = build("llama"), build("llama").config

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, ids, **options):
        result = self.inner(ids, **options)
        result.logits = result.logits.sin() * 3
        return result


def test_an_unknown_ending_is_noticed():
    """Where the head alone does not give the model's logits, these are taken as they are."""
    model = LanguageModel(Odd())
    assert model._head is None
    for one, found in zip(MIXED, log_likelihoods(model, MIXED), strict=True):
        assert found == pytest.approx([direct(model.model, one.context, a) for a in one.answers], abs=2e-4)


def test_few_positions_at_a_time(monkeypatch):
    """The bound on memory changes nothing."""
    expected = log_likelihoods(LanguageModel(build("llama")), MIXED)
    model = LanguageModel(build("llama"))
    model.__dict__["rows_at_once"] = 2
    for one, other in zip(expected, log_likelihoods(model, MIXED), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_the_head_sees_scored_positions_only():
    """Of a question with two answers of two tokens the head computes three positions, not all eight."""
    model = LanguageModel(build("llama"))
    assert model.shares_prefixes
    assert model._head is not None
    rows = []
    handle = model._head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0][..., 0].numel()))
    log_likelihoods(model, [Asked((1, 2, 3), ((4, 5), (6, 7)))])
    handle.remove()
    assert rows == [1, 2]


def test_too_long_loses_its_beginning():
    """What the model cannot read is cut on the left, as lm-evaluation-harness does."""
    model = LanguageModel(build("llama"))
    context = tuple(np.random.default_rng(0).integers(3, 250, 140).tolist())
    (found,) = log_likelihoods(model, [Asked(context, ((5, 6),))])
    assert found == pytest.approx([direct(model.model, context[-127:], (5, 6))], abs=2e-4)


def test_encode_begins_once():
    """A text that a chat template has begun is not begun again."""
    model = LanguageModel(build("llama"), byte_tokenizer(begins=True))
    assert model.encode("a") == model.encode("<s>a")
    assert model.encode("a")[0] == 1


def test_open(folders):
    """Float and quantized folders by the same words; the fingerprint tells them apart."""
    one, other = open_language_model(folders[0]), open_language_model(folders[1], packed=True)
    assert (one.name, other.name) == ("float", "int3")
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == open_language_model(folders[0]).fingerprint
    assert one.longest == 128
    assert any(type(module).__module__.startswith("splitquant") for module in other.model.modules())
    whole = open_language_model(folders[1])
    assert not any(type(module).__module__.startswith("splitquant") for module in whole.model.modules())
    for first, second in zip(log_likelihoods(other, MIXED), log_likelihoods(whole, MIXED), strict=True):
        assert first == pytest.approx(second, rel=1e-5)  # kernels and decoded weights add up in other orders
    assert log_likelihoods(one, MIXED)[0] != pytest.approx(log_likelihoods(whole, MIXED)[0], abs=1e-3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "has no config.json"),
        (lambda folder: build("llama").save_pretrained(folder), "tokenizer cannot be loaded"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}")), "transformers cannot load it"),
    ],
)
def test_no_model(tmp_path, make, says):
    """What is missing, and what was expected, in one line."""
    make(tmp_path / "m")
    with pytest.raises(SourceError, match=says) as error:
        open_language_model(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_no_language_model(tmp_path):
    """A model of another kind is told where it belongs."""
    import transformers

    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(transformers.ViTConfig().to_dict()))
    with pytest.raises(SourceError, match=r"model_type is 'vit'.*--embeddings.*--images"):
        open_language_model(folder)
