"""Sentence encoders: how near the embeddings of a quantized one are to those of the float one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitquant.core.arrays import F64
from splitquant.errors import SourceError, SpecError
from splitquant.evaluate.model import (
    check_folder,
    decoded,
    fingerprint,
    first_line,
    open_tokenizer,
    quiet,
    ready_transformers,
)
from splitquant.evaluate.run import PLAIN, Run
from splitquant.evaluate.statistics import Estimate, mean


@dataclass(frozen=True, slots=True)
class Embeddings:
    """How near two encoders are.

    cosine: the mean over sentences of the cosine between the two embeddings. worst: the smallest of them, of the sentence
    number `worst_at`. nearest: the share of sentences whose nearest other sentence is the same by both.
    """

    float_model: str
    model: str
    sentences: int
    cosine: Estimate
    worst: float
    worst_at: int
    nearest: Estimate

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        return {
            "float": self.float_model,
            "model": self.model,
            "sentences": self.sentences,
            "cosine": self.cosine.to_dict(),
            "worst": self.worst,
            "worst_at": self.worst_at,
            "nearest": self.nearest.to_dict(),
        }


class Encoder:
    """A sentence encoder: a transformers model, its tokenizer, and how the tokens become one vector.

    Args:
        model: gives `last_hidden_state`.
        tokenizer: of transformers.
        pooling: mean (over all tokens) or cls (the first one).
        name: what results call it.
        fingerprint: what tells its files from others; None: it is in memory only.
    """

    def __init__(
        self, model: Any, tokenizer: Any, pooling: str = "mean", *, name: str = "model", fingerprint: str | None = None
    ) -> None:
        self.model, self.tokenizer, self.pooling, self.name = model.eval(), tokenizer, pooling, name
        self.fingerprint = fingerprint

    def embed(self, sentences: Sequence[str]) -> F64:
        """Embeddings of length 1, float64 `[sentences, width]`."""
        import torch  # noqa: PLC0415 - an extra, brought by whoever made the model

        batch = self.tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state.float()
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        found: F64 = torch.nn.functional.normalize(pooled, dim=1).double().numpy()
        return found


def open_encoder(path: str | Path, *, dtype: str = "float32") -> Encoder:
    """Open a Hugging Face folder, float or quantized, as a sentence encoder.

    Pooling is what sentence-transformers would do by the folder's `1_Pooling/config.json`; without it the mean over tokens.

    Raises:
        SourceError: for what is no folder of an encoder. MissingExtraError: without transformers.
    """
    folder = Path(path)
    check_folder(folder)
    pooling, transformers = _pooling(folder), ready_transformers()
    with quiet(transformers):
        try:
            model = transformers.AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
        except (OSError, ValueError) as error:
            raise SourceError(f"{folder}: transformers cannot load it ({first_line(error)})") from error
        tokenizer = open_tokenizer(folder)
    return Encoder(
        decoded(model),
        tokenizer,
        pooling,
        name=folder.name or str(folder),
        fingerprint=f"{dtype} {fingerprint(folder)}",
    )


def _pooling(folder: Path) -> str:
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    try:
        modes = {key for key, value in json.loads(file.read_text(encoding="utf-8")).items() if value is True}
    except (OSError, ValueError, AttributeError) as error:
        raise SourceError(f"{file}: cannot be read ({error}); download it again") from error
    if "pooling_mode_cls_token" in modes:
        return "cls"
    if "pooling_mode_mean_tokens" in modes:
        return "mean"
    raise SourceError(f"{file}: asks for pooling by {', '.join(sorted(modes)) or 'nothing'}; expected mean or cls")


def embeddings(float_model: Encoder, model: Encoder, sentences: Sequence[str], *, run: Run = PLAIN) -> Embeddings:
    """Compare a quantized sentence encoder with the float one.

    Args:
        float_model: what it should be like.
        model: the quantized one.
        sentences: two at least.
        run: how to run; its batch counts sentences.

    Raises:
        SpecError: for fewer than two sentences.
    """
    if len(sentences) < 2:
        raise SpecError(f"there are {len(sentences)} sentences; expected one per line, and two at least")
    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    first, second = (
        np.asarray(
            run.pieces(
                "embeddings",
                (one.fingerprint, list(sentences)),
                order,
                lambda some, one=one: one.embed([sentences[i] for i in some]).tolist(),  # type: ignore[misc]
            )
        )
        for one in (float_model, model)
    )
    if first.shape != second.shape:
        raise SpecError(
            f"the embeddings are {first.shape[1]} and {second.shape[1]} wide; expected two forms of one model"
        )
    cosine = (first * second).sum(1)
    near = [_nearest(one) for one in (first, second)]
    return Embeddings(
        float_model.name,
        model.name,
        len(sentences),
        mean(cosine),
        float(cosine.min()),
        int(cosine.argmin()),
        mean(near[0] == near[1]),
    )


def _nearest(vectors: F64) -> Any:
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(1)
