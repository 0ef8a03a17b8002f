"""How far a quantized model has moved from the float one: it shows damage long before accuracy does."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitquant.core.arrays import F64, I64
from splitquant.errors import SpecError
from splitquant.evaluate.model import LanguageModel
from splitquant.evaluate.perplexity import Perplexity, as_windows, by_length, window_features
from splitquant.evaluate.run import PLAIN, Run
from splitquant.evaluate.statistics import Estimate, mean_along_text
from splitquant.evaluate.texts import Window, Windows

_KEEP_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Divergence:
    """What two models make of the same text.

    kl: the mean of KL(float || quantized) over the scored positions, in nats. agreement: the share of positions at which both
    hold the same token for the likeliest.
    """

    kl: Estimate
    agreement: Estimate
    reference: Perplexity
    quantized: Perplexity

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        return {
            "kl": self.kl.to_dict(),
            "agreement": self.agreement.to_dict(),
            "float": self.reference.to_dict(),
            "quantized": self.quantized.to_dict(),
        }


class KeptReference:
    """What the float model says of a text, so that many quantized ones are compared with it and it is run once.

    The log-probabilities of all tokens are kept where they fit into `keep_bytes`, else what its head is given: then only the
    head computes again.

    Args:
        model: the float model.
        text, window, stride, tokens, run: as in `perplexity`.
        keep_bytes: of memory, for log-probabilities.
    """

    def __init__(  # noqa: PLR0913 - how a text is cut
        self,
        model: LanguageModel,
        text: str | Sequence[Sequence[int]] | Windows,
        *,
        window: int | None = None,
        stride: int | None = None,
        tokens: int | None = None,
        run: Run = PLAIN,
        keep_bytes: int = _KEEP_BYTES,
    ) -> None:
        self.model, self.text = model, as_windows(model, text, window, stride, tokens)
        self._whole = self.text.scored * model.vocabulary * 4 <= keep_bytes
        self._windows = dict[int, Any]()
        self._losses = dict[int, F64]()
        Run(run.batch, run.progress).pieces("the float model", (None, None), by_length(self.text.windows), self._keep)

    def _keep(self, some: Sequence[int]) -> list[None]:
        windows = [self.text.windows[i] for i in some]
        self._windows |= zip(some, (part.clone() for part in window_features(self.model, windows)), strict=True)
        return [None for _ in some]

    @property
    def perplexity(self) -> Perplexity:
        """The float model's own."""
        for i in range(len(self.text.windows)):
            if i not in self._losses:
                deque(self.parts(i), 0)
        losses = np.concatenate([self._losses[i] for i in range(len(self.text.windows))])
        return Perplexity(self.model.name, mean_along_text(losses), self.text)

    def parts(self, number: int) -> Iterator[tuple[Any, I64]]:
        """The log-probabilities of a window `[positions, vocabulary]`, a few positions at a time, with the tokens that came."""
        import torch  # noqa: PLC0415 - an extra, brought by whoever made the model

        kept, targets = self._windows[number], scored_ids(self.text.windows[number])
        size, known = self.model.rows_at_once, self._whole and number in self._losses
        parts, losses = list[Any](), list[F64]()
        for i in range(0, len(targets), size):
            some = kept[i : i + size] if known else log_softmax(self.model, kept[i : i + size])
            parts.append(some if self._whole else None)
            losses.append(_losses(some, targets[i : i + size]))
            yield some, targets[i : i + size]
        self._losses[number] = np.concatenate(losses)
        if self._whole and not known:
            self._windows[number] = torch.cat(parts)


def divergence(  # noqa: PLR0913 - how a text is cut
    reference: LanguageModel | KeptReference,
    quantized: LanguageModel,
    text: str | Sequence[Sequence[int]] | Windows | None = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    run: Run = PLAIN,
) -> Divergence:
    """Compare a quantized language model with the float one on a text; both perplexities come with it.

    Args:
        reference: the float model, or what was kept of it (then no text is given).
        quantized: a model with the same tokens.
        text: as in `perplexity`.
        window: as in `perplexity`.
        stride: as in `perplexity`.
        tokens: as in `perplexity`.
        run: how to run; its state keeps what the quantized model did.

    Raises:
        SpecError: for vocabularies of different sizes, and as `perplexity` does.
    """
    if isinstance(reference, LanguageModel):
        if text is None:
            raise SpecError("the divergence of two models needs a text")
        reference = KeptReference(reference, text, window=window, stride=stride, tokens=tokens, run=run)
    kept = reference
    if kept.model.vocabulary != quantized.vocabulary:
        raise SpecError(
            f"{kept.model.name} has {kept.model.vocabulary} tokens and {quantized.name} {quantized.vocabulary}; "
            "only models with the same vocabulary have a divergence"
        )
    windows = kept.text.windows
    prints = (kept.model.fingerprint, quantized.fingerprint)
    identity = (None if None in prints else "|".join(map(str, prints)), [(one.ids, one.scored) for one in windows])
    found = run.pieces("divergence", identity, by_length(windows), lambda some: _compared(kept, quantized, some))
    kl, same, losses = (np.concatenate([np.asarray(piece[i], np.float64) for piece in found]) for i in range(3))
    return Divergence(
        mean_along_text(kl),
        mean_along_text(same),
        kept.perplexity,
        Perplexity(quantized.name, mean_along_text(losses), kept.text),
    )


def _compared(kept: KeptReference, quantized: LanguageModel, some: Sequence[int]) -> list[list[list[float]]]:
    """KL, agreement and loss at every scored position of some windows."""
    found = []
    for i, features in zip(some, window_features(quantized, [kept.text.windows[i] for i in some]), strict=True):
        columns: tuple[list[float], list[float], list[float]] = ([], [], [])
        for expected, targets in kept.parts(i):
            start = len(columns[0])
            got = log_softmax(quantized, features[start : start + len(targets)])
            columns[1].extend((expected.argmax(-1) == got.argmax(-1)).double().tolist())
            columns[2].extend(_losses(got, targets).tolist())
            columns[0].extend((expected.exp() * got.sub_(expected)).sum(-1).neg_().double().tolist())
        found.append(list(columns))
    return found


def log_softmax(model: LanguageModel, features: Any) -> Any:
    """The log-probabilities of all tokens at some positions, float32 `[positions, vocabulary]`."""
    return model.logits(features).log_softmax(-1)


def scored_ids(window: Window) -> I64:
    """The tokens of a window that count."""
    return np.asarray(window.ids[-window.scored :])


def _losses(log_probs: Any, targets: I64) -> F64:
    import torch  # noqa: PLC0415

    picked: F64 = -log_probs.gather(1, torch.from_numpy(targets)[:, None])[:, 0].double().numpy()
    return picked
