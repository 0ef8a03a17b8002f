"""How well a language model foresees a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitquant.core.arrays import F64
from splitquant.evaluate.model import LanguageModel, padded
from splitquant.evaluate.run import PLAIN, Run
from splitquant.evaluate.statistics import Estimate, mean_along_text
from splitquant.evaluate.texts import Window, Windows, cut


@dataclass(frozen=True, slots=True)
class Perplexity:
    """What a model makes of a text.

    loss: the mean of -ln p over the scored tokens, in nats. text: how the text was cut.
    """

    model: str
    loss: Estimate
    text: Windows

    @property
    def perplexity(self) -> Estimate:
        """Exp of the loss; its error to first order."""
        value = math.exp(self.loss.value) if self.loss.value < 709 else math.inf
        return Estimate(value, value * self.loss.error)

    @property
    def bits_per_byte(self) -> Estimate | None:
        """Bits per byte of the text, which models with different tokenizers can be compared by; None without the text."""
        nbytes = self.text.nbytes
        if not nbytes:
            return None
        share = self.text.scored / (nbytes * math.log(2))
        return Estimate(self.loss.value * share, self.loss.error * share)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        return {
            "model": self.model,
            "perplexity": self.perplexity.to_dict(),
            "loss": self.loss.to_dict(),
            "bits_per_byte": None if self.bits_per_byte is None else self.bits_per_byte.to_dict(),
            **text_dict(self.text),
        }


def text_dict(text: Windows) -> dict[str, Any]:
    """How a text was cut, for a JSON report."""
    return {
        "tokens": text.tokens,
        "scored_tokens": text.scored,
        "scored_bytes": text.nbytes,
        "window": text.window,
        "stride": text.stride,
        "begins_with_token": text.begins,
    }


def perplexity(  # noqa: PLR0913 - how a text is cut
    model: LanguageModel,
    text: str | Sequence[Sequence[int]] | Windows,
    *,
    window: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    run: Run = PLAIN,
) -> Perplexity:
    """Measure the perplexity of a model on a text.

    Args:
        model: see `open_language_model`.
        text: a text, documents of token ids each, or windows that were cut before (then the next three do not count).
        window: tokens read together, at most; None: 1,024, or what the model reads where that is less.
        stride: tokens from one window to the next; None: windows do not overlap.
        tokens: only so many of the text; None: all.
        run: how to run.

    Raises:
        SpecError: for a window, stride or number of tokens that is not possible.
    """
    windows = as_windows(model, text, window, stride, tokens)
    identity = (model.fingerprint, [(one.ids, one.scored) for one in windows.windows])
    losses = run.pieces(
        "perplexity",
        identity,
        by_length(windows.windows),
        lambda some: [list(loss) for loss in window_losses(model, [windows.windows[i] for i in some])],
    )
    return Perplexity(model.name, mean_along_text(np.concatenate(losses)), windows)


def as_windows(
    model: LanguageModel,
    text: str | Sequence[Sequence[int]] | Windows,
    window: int | None,
    stride: int | None,
    tokens: int | None,
) -> Windows:
    """A text in windows that a model can read."""
    if isinstance(text, Windows):
        return text
    return cut(model.tokenizer, text, window=window, stride=stride, tokens=tokens, longest=model.longest)


def by_length(windows: Sequence[Window]) -> list[int]:
    """The longest first, so that neighbours need little filling up and the largest memory is taken at once."""
    return sorted(range(len(windows)), key=lambda i: -len(windows[i].ids))


def window_features(model: LanguageModel, windows: Sequence[Window]) -> list[Any]:
    """What the head is given where it foresees the scored tokens of each window, `[scored, width]`."""
    features = model.features(padded([one.ids for one in windows]))
    ends = [len(one.ids) - 1 for one in windows]
    return [features[i, end - one.scored : end] for i, (one, end) in enumerate(zip(windows, ends, strict=True))]


def window_losses(model: LanguageModel, windows: Sequence[Window]) -> list[F64]:
    """-ln p of the scored tokens of each window."""
    return [
        -model.log_probs(features, np.arange(one.scored), np.asarray(one.ids[-one.scored :]))
        for one, features in zip(windows, window_features(model, windows), strict=True)
    ]
