"""Sentence encoders against what their hidden states give."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import splitquant
from builders.language_models import byte_tokenizer
from splitquant.errors import SourceError, SpecError
from splitquant.evaluate import Run, embeddings, open_encoder

SENTENCES = ["A cat sat.", "The dog ran home over the hills.", "Rain.", "Snow fell on the roofs all night long."]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A float encoder's folder and a quantized one."""
    import transformers

    base = tmp_path_factory.mktemp("encoders")
    config = transformers.BertConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(base / "float")
    byte_tokenizer(begins=True).save_pretrained(base / "float")
    splitquant.quantize(base / "float", base / "int4", threads=1)
    return base / "float", base / "int4"


def pooled(encoder, sentence, how):
    """The embedding of one sentence, from the hidden states."""
    with torch.no_grad():
        hidden = encoder.model(torch.tensor([encoder.tokenizer(sentence).input_ids])).last_hidden_state[0].double()
    vector = (hidden.mean(0) if how == "mean" else hidden[0]).numpy()
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("mode", "how"), [(None, "mean"), ("pooling_mode_mean_tokens", "mean"), ("pooling_mode_cls_token", "cls")]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_cosine(encoders, tmp_path, mode, how, batch):
    """The cosine of both embeddings, pooled as the folder says, whatever the batch."""
    import shutil

    one, other = tmp_path / "one", tmp_path / "other"
    for source, copy in zip(encoders, (one, other), strict=True):
        shutil.copytree(source, copy)
        if mode is not None:
            (copy / "1_Pooling").mkdir()
            (copy / "1_Pooling" / "config.json").write_text(json.dumps({mode: True, "x": 3}))
    first, second = open_encoder(one), open_encoder(other)
    found = embeddings(first, second, SENTENCES, run=Run(batch))
    cosines = [float(pooled(first, s, how) @ pooled(second, s, how)) for s in SENTENCES]
    assert found.cosine.value == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found.worst == pytest.approx(min(cosines), abs=1e-5)
    assert found.worst_at == int(np.argmin(cosines))
    assert found.worst < 1 - 1e-4
    assert embeddings(first, first, SENTENCES).nearest.value == 1


def test_refused(encoders, tmp_path):
    """Too few sentences; pooling that is not known; no model."""
    encoder = open_encoder(encoders[0])
    with pytest.raises(SpecError, match="there are 1 sentences"):
        embeddings(encoder, encoder, SENTENCES[:1])
    with pytest.raises(SourceError, match="no such folder"):
        open_encoder(tmp_path / "no")
    folder = tmp_path / "m" / "1_Pooling"
    folder.mkdir(parents=True)
    (tmp_path / "m" / "config.json").write_text("{}")
    (folder / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(SourceError, match="asks for pooling by pooling_mode_max_tokens; expected mean or cls"):
        open_encoder(tmp_path / "m")
    (folder / "config.json").write_text("[]")
    with pytest.raises(SourceError, match="cannot be read"):
        open_encoder(tmp_path / "m")
