"""Multiple choice: which of some answers a language model finds likeliest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitquant.errors import SourceError, SpecError
from splitquant.evaluate.model import LanguageModel
from splitquant.evaluate.questions import FORMS, Form, Question, read_questions
from splitquant.evaluate.run import PLAIN, Run
from splitquant.evaluate.scoring import SPREAD, Asked, log_likelihoods
from splitquant.evaluate.statistics import Estimate, kept_finite, mean


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model makes of a question: ln p of every choice, and the characters of each."""

    name: str
    right: int
    scores: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def chosen(self) -> int:
        """The likeliest choice, the first of equal ones."""
        return int(np.argmax(self.scores))

    @property
    def chosen_norm(self) -> int:
        """The likeliest choice per character."""
        return int(np.argmax(np.asarray(self.scores) / np.asarray(self.lengths, np.float64)))


@dataclass(frozen=True, slots=True)
class Choices:
    """The answers of a model to all questions, and the shares that are right, as lm-evaluation-harness defines them.

    acc: by the likeliest choice. acc_norm: by the likeliest per character.
    """

    model: str
    form: Form
    answers: tuple[Answer, ...]

    @property
    def acc(self) -> Estimate:
        """The share of right answers by likelihood."""
        return mean([one.chosen == one.right for one in self.answers])

    @property
    def acc_norm(self) -> Estimate:
        """The share of right answers by likelihood per character."""
        return mean([one.chosen_norm == one.right for one in self.answers])

    @property
    def chance(self) -> float:
        """What guessing gets."""
        return mean([1 / len(one.scores) for one in self.answers]).value

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        return {
            "model": self.model,
            "form": self.form,
            "questions": len(self.answers),
            "acc": self.acc.to_dict(),
            "acc_norm": self.acc_norm.to_dict(),
            "chance": self.chance,
            "answers": [
                {"id": one.name, "right": one.right, "scores": [kept_finite(score) for score in one.scores]}
                for one in self.answers
            ],
        }


def choices(  # noqa: PLR0913 - what is asked, and how
    model: LanguageModel,
    questions: str | Path | Sequence[Question],
    *,
    form: Form = "cloze",
    limit: int | None = None,
    seed: int | None = None,
    run: Run = PLAIN,
) -> Choices:
    """Put questions to a language model.

    Args:
        model: see `open_language_model`.
        questions: a file of JSON lines, see `read_questions`; or questions that were read.
        form: cloze (how likely is each answer), letters (how likely is its letter), chat (letters, by the chat template).
        limit: only so many of the file: the first ones, or with a seed a sample.
        seed: of the sample.
        run: how to run; its batch counts questions.

    Raises:
        SourceError: names the first line that is no question. SpecError: for another form, or a model without a chat template.
    """
    if form not in FORMS:
        raise SpecError(f"the form is {form!r}; expected {', '.join(FORMS)}")
    asked = questions if not isinstance(questions, str | Path) else read_questions(Path(questions), limit, seed)
    put = [tokens_of(model, question, form) for question in asked]
    found = run.pieces(
        f"choices, {form}",
        (model.fingerprint, [(one.context, one.answers) for one in put]),
        sorted(range(len(put)), key=lambda i: (-len(put[i].context), -put[i].longest)),
        lambda some: log_likelihoods(model, [put[i] for i in some]),
        lambda left: _of_near_lengths(left, put, run.batch),
    )
    return Choices(
        model.name,
        form,
        tuple(
            Answer(one.name, one.right, tuple(scores), one.lengths(form))
            for one, scores in zip(asked, found, strict=True)
        ),
    )


def _of_near_lengths(left: Sequence[int], put: Sequence[Asked], batch: int) -> Iterator[Sequence[int]]:
    """Batches of questions, the longest first, whose contexts are near enough in length to be read together."""
    some: list[int] = []
    for i in left:
        if some and (len(some) == batch or len(put[some[0]].context) - len(put[i].context) > SPREAD):
            yield some
            some = []
        some.append(i)
    if some:
        yield some


def tokens_of(model: LanguageModel, question: Question, form: Form) -> Asked:
    """A question as tokens: the answers' are those that the whole text has beyond the context's, as in lm-evaluation-harness.

    What is longer than the model reads loses its beginning; SourceError for an answer that is.
    """
    context, answers = question.put(form, lambda text: _chat(model, text))
    space = context[len(context.rstrip()) :]
    context = context.rstrip() if form != "chat" else context
    lead = space if form != "chat" else ""
    before = model.encode(context) if context else [model.beginning]
    after = []
    for answer in answers:
        ids = model.encode(context + lead + answer)[len(before) if context else 0 :]
        if not ids:
            raise SourceError(
                f"question {question.name!r}: the tokenizer of {model.name} melts the answer {answer!r} into the context; "
                "leave this question out"
            )
        if len(ids) > model.longest:
            raise SourceError(
                f"question {question.name!r}: an answer has {len(ids)} tokens and {model.name} reads {model.longest}; "
                "leave this question out"
            )
        after.append(tuple(ids))
    return Asked(tuple(before), tuple(after))


def _chat(model: LanguageModel, text: str) -> str:
    if getattr(model.tokenizer, "chat_template", None) is None:
        raise SpecError(f"{model.name} has no chat template; ask it with the form cloze or letters")
    message = [{"role": "user", "content": text}]
    said: str = model.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return said
