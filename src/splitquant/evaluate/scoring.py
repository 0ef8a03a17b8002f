"""How likely some continuations of a context are, with the context read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitquant.evaluate.model import LanguageModel, padded

Ids = tuple[int, ...]
SPREAD = 4
"""By how many tokens contexts may differ that are read together: so much of each is read again for every continuation."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Some continuations of one context, as tokens."""

    context: Ids
    answers: tuple[Ids, ...]

    @property
    def longest(self) -> int:
        """The tokens of the longest whole, but for the last, which is foreseen and not read."""
        return len(self.context) + max(map(len, self.answers)) - 1


def log_likelihoods(model: LanguageModel, asked: Sequence[Asked]) -> list[list[float]]:
    """Ln p of every continuation, given its context.

    Where the contexts have about one length and the model can go on from a repeated cache, as much as the shortest has is read
    once of each; what follows is read for each continuation. Else every whole is read.

    Args:
        model: see `open_language_model`.
        asked: contexts of at least one token, with continuations of at least one token.
    """
    longest = max(one.longest for one in asked)
    lengths = [len(one.context) for one in asked]
    if max(lengths) - min(lengths) <= SPREAD and longest <= model.longest_shared and model.shares_prefixes:
        return _from_shared(model, asked)
    return _from_wholes(model, asked)


def _from_shared(model: LanguageModel, asked: Sequence[Asked]) -> list[list[float]]:
    import torch  # noqa: PLC0415 - an extra, brought by whoever made the model

    shared = min(len(one.context) for one in asked)
    # Of every continuation: its question, what is read of it after the shared part, and how many tokens of that are its own.
    tails = [(row, one.context[shared:] + own, len(own)) for row, one in enumerate(asked) for own in one.answers]
    longer = [i for i, (_, tail, _) in enumerate(tails) if len(tail) > 1]
    cache = model.cache() if longer else None
    hidden = model.features(torch.tensor([one.context[:shared] for one in asked]), cache)[:, -1]
    totals = np.zeros(len(tails))
    if at_once := [i for i, (_, tail, own) in enumerate(tails) if len(tail) == own]:  # foreseen from the shared part
        rows, places = np.unique([tails[i][0] for i in at_once], return_inverse=True)
        totals[at_once] = model.log_probs(hidden[rows], places, np.asarray([tails[i][1][0] for i in at_once]))
    if cache is not None:
        cache.batch_select_indices(torch.tensor([tails[i][0] for i in longer]))
        more = model.features(padded([tails[i][1][:-1] for i in longer]), cache)
        rest = [(tail, min(own, len(tail) - 1)) for _, tail, own in (tails[i] for i in longer)]
        totals[longer] += _sums(model, more, [(len(tail) - 1 - own, tail[-own:]) for tail, own in rest])
    return _by_question(asked, totals.tolist())


def _from_wholes(model: LanguageModel, asked: Sequence[Asked]) -> list[list[float]]:
    wholes = [((one.context + answer)[-(model.longest + 1) :][:-1], answer) for one in asked for answer in one.answers]
    hidden = model.features(padded([whole for whole, _ in wholes]))
    totals = _sums(model, hidden, [(len(whole) - len(answer), answer) for whole, answer in wholes])
    return _by_question(asked, totals.tolist())


def _sums(model: LanguageModel, hidden: Any, scored: Sequence[tuple[int, Ids]]) -> Any:
    """The sum of ln p of some tokens of every row, which are foreseen from a position on."""
    import torch  # noqa: PLC0415

    features = torch.cat([hidden[row, start : start + len(ids)] for row, (start, ids) in enumerate(scored)])
    targets = np.concatenate([np.asarray(ids) for _, ids in scored])
    found = model.log_probs(features, np.arange(len(targets)), targets)
    starts = np.cumsum([0, *(len(ids) for _, ids in scored)])[:-1]
    return np.add.reduceat(found, starts)


def _by_question(asked: Sequence[Asked], totals: list[float]) -> list[list[float]]:
    found, start = [], 0
    for one in asked:
        found.append(totals[start : start + len(one.answers)])
        start += len(one.answers)
    return found
