"""splitquant.load."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import transformers

import splitquant
from splitquant.errors import MissingExtraError, SourceError


@pytest.mark.parametrize(
    ("name", "cls"),
    [("llama", "LlamaForCausalLM"), ("bert", "BertForMaskedLM"), ("whisper", "WhisperForConditionalGeneration")],
)
def test_class_of_the_configuration(folders, name, cls):
    """The class is the one that config.json names, in evaluation mode."""
    model = splitquant.load(folders(name).packed)
    assert type(model).__name__ == cls
    assert not model.training


def test_asked_class(folders):
    """model_class may be a class or its name."""
    folder = folders("bert").packed
    assert type(splitquant.load(folder, model_class="AutoModel")).__name__ == "BertModel"
    assert type(splitquant.load(str(folder), model_class=transformers.BertModel)).__name__ == "BertModel"


def test_unknown_class(folders, tmp_path):
    """Where config.json names no class of transformers, the base model is loaded."""
    import shutil

    shutil.copytree(folders("bert").packed, tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "architectures": ["BertForNothing"]}))
    assert type(splitquant.load(tmp_path / "copy")).__name__ == "BertModel"


def test_options_go_to_from_pretrained(llama):
    """Other options are those of from_pretrained."""
    model = splitquant.load(llama.packed, dtype=torch.bfloat16, attn_implementation="eager")
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")


def test_tokenizer(llama, tmp_path):
    """With tokenizer=True the pair comes."""
    import shutil

    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    shutil.copytree(llama.packed, tmp_path / "copy")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "copy")
    model, tokenizer = splitquant.load(tmp_path / "copy", tokenizer=True)
    assert tokenizer("b a c")["input_ids"] == [1, 0, 2]
    assert model(**tokenizer("b a", return_tensors="pt", return_token_type_ids=False)).logits.shape == (1, 2, 96)


def test_no_folder(tmp_path):
    """A folder that is not there is named."""
    with pytest.raises(SourceError, match="no such folder"):
        splitquant.load(tmp_path / "nowhere")


def test_float_folder(llama):
    """A folder that is not quantized is refused with the remedy."""
    with pytest.raises(SourceError, match=r"is no splitquant folder.*splitquant quantize"):
        splitquant.load(llama.source)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_unreadable_configuration(tmp_path, text):
    """A config.json that is no JSON object is refused."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SourceError, match=r"config\.json"):
        splitquant.load(tmp_path)


def test_missing_extra(llama, monkeypatch):
    """Without transformers the error says what to install."""
    real = importlib.util.find_spec
    monkeypatch.setattr("splitquant.hf.loader.find_spec", lambda name: None if name == "transformers" else real(name))
    with pytest.raises(MissingExtraError, match=r"transformers is needed.*pip install 'splitquant\[hf\]'"):
        splitquant.load(llama.packed)
