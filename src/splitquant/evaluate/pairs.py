"""Two models that answered the same questions, compared question by question: far sharper than two shares side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from splitquant.errors import SpecError
from splitquant.evaluate.choices import Answer, Choices
from splitquant.evaluate.images import Images
from splitquant.evaluate.statistics import Estimate, mcnemar, mean

SURE = 0.05


@dataclass(frozen=True, slots=True)
class PairedAnswers:
    """What became of the answers.

    changed: questions to which another choice was given. lost: that only the first model answered rightly. won: that only the
    second did. difference: of the shares of right answers, second minus first, with the standard error of paired answers.
    p: how often chance alone divides `lost + won` so unevenly (McNemar, exact).
    """

    by: str
    questions: int
    changed: int
    lost: int
    won: int
    difference: Estimate
    p: float

    def __str__(self) -> str:
        """The comparison in words."""
        points = f"{100 * self.difference.value:+.1f} points (standard error {100 * self.difference.error:.1f})"
        moved = f"{self.changed} answers changed, {self.lost} right ones lost and {self.won} won"
        if self.p < SURE:
            verdict = f"a real difference (McNemar's p = {self.p:.2g})"
        else:
            verdict = f"{self.questions:,} questions cannot tell this from chance (McNemar's p = {self.p:.2g})"
        return f"{self.by}: {points}; {moved}; {verdict}"

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        return {
            "by": self.by,
            "questions": self.questions,
            "changed": self.changed,
            "lost": self.lost,
            "won": self.won,
            "difference": self.difference.to_dict(),
            "mcnemar_p": self.p,
        }


def paired_answers(first: Choices, second: Choices, *, norm: bool = False) -> PairedAnswers:
    """Compare two models' answers to the same questions.

    Args:
        first: of the float model.
        second: of the quantized one.
        norm: whether answers are chosen by likelihood per character (acc_norm), not by likelihood (acc).

    Raises:
        SpecError: where the questions, or how they were put, differ.
    """
    if first.form != second.form or [(a.name, a.right) for a in first.answers] != [
        (b.name, b.right) for b in second.answers
    ]:
        raise SpecError("the two models were asked other questions, or in another form; only equal ones make pairs")

    def given(one: Answer) -> int:
        return one.chosen_norm if norm else one.chosen

    pairs = [(given(a), given(b), a.right) for a, b in zip(first.answers, second.answers, strict=True)]
    return _paired("acc_norm" if norm else "acc", pairs)


def paired_images(first: Images, second: Images) -> PairedAnswers:
    """Compare the classes that two models chose for the same images; SpecError where these differ.

    Args:
        first: of the float model.
        second: of the quantized one.
    """
    if first.labels != second.labels:
        raise SpecError("the two models were shown other images; only equal ones make pairs")
    return _paired("top-1", list(zip(first.chosen, second.chosen, first.labels, strict=True)))


def _paired(by: str, pairs: Sequence[tuple[int, int, int]]) -> PairedAnswers:
    """Of the choice of the first, that of the second, and the right one."""
    lost = sum(a == right != b for a, b, right in pairs)
    won = sum(b == right != a for a, b, right in pairs)
    changed = sum(a != b for a, b, _ in pairs)
    difference = mean([(b == right) - (a == right) for a, b, right in pairs])
    return PairedAnswers(by, len(pairs), changed, lost, won, difference, mcnemar(lost, won))
