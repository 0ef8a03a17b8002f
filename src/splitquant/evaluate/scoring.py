"""How likely some continuations of a context are, with the context read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitquant.evaluate.model import LanguageModel, padded

Ids = tuple[int, ...]


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

    Where the contexts have one length and the model can go on from a repeated cache, they are read once; first tokens are
    foreseen from there, and only what follows them is read for each continuation. Else every whole is read.

    Args:
        model: see `open_language_model`.
        asked: contexts of at least one token, with continuations of at least one token.
    """
    longest = max(one.longest for one in asked)
    alike = len({len(one.context) for one in asked}) == 1
    if alike and longest <= model.longest_shared and model.shares_prefixes:
        return _from_shared(model, asked)
    return _from_wholes(model, asked)


def _from_shared(model: LanguageModel, asked: Sequence[Asked]) -> list[list[float]]:
    import torch  # noqa: PLC0415 - an extra, brought by whoever made the model

    on = max(len(answer) for one in asked for answer in one.answers) > 1
    cache = model.cache() if on else None
    hidden = model.features(torch.tensor([one.context for one in asked]), cache)
    pairs = [(row, answer) for row, one in enumerate(asked) for answer in one.answers]
    rows, targets = np.asarray([row for row, _ in pairs]), np.asarray([answer[0] for _, answer in pairs])
    totals = model.log_probs(hidden[:, -1], rows, targets)
    longer = [i for i, (_, answer) in enumerate(pairs) if len(answer) > 1]
    if cache is not None:
        cache.batch_select_indices(torch.from_numpy(rows[longer]))
        rest = [pairs[i][1] for i in longer]
        more = model.features(padded([answer[:-1] for answer in rest]), cache)
        totals[longer] += _sums(model, more, [(0, answer[1:]) for answer in rest])
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
