"""Multiple-choice questions from JSON lines: those of AI2 ARC, of HellaSwag and of MMLU, and how each is put to a model."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from splitquant.errors import SourceError, SpecError

Form = Literal["cloze", "letters", "chat"]
FORMS: tuple[Form, ...] = get_args(Form)
_KINDS = (
    "ARC (question, choices with text and label, answerKey), "
    "HellaSwag (ctx, or activity_label, ctx_a and ctx_b, endings, label) or MMLU (question, choices, answer)"
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question. stem: its text. asked: whether it is a question, not a text to go on with. right: index of the right choice."""

    name: str
    stem: str
    choices: tuple[str, ...]
    right: int
    asked: bool = True

    def put(self, form: Form, chat: Callable[[str], str] | None = None) -> tuple[str, tuple[str, ...]]:
        """The text before the answer, and the answers as the model would write them.

        cloze: the answer itself, the forms of lm-evaluation-harness for ARC and HellaSwag. letters: A, B, ... after a list of
        all answers, its form for MMLU. chat: the same through the model's chat template.
        """
        if form == "cloze":
            stem = f"Question: {self.stem}\nAnswer:" if self.asked else self.stem
            return stem, tuple(f" {choice}" for choice in self.choices)
        letters = string.ascii_uppercase[: len(self.choices)]
        lines = [f"{letter}. {choice}" for letter, choice in zip(letters, self.choices, strict=True)]
        stem = "\n".join([self.stem.strip(), *lines, "Answer:"])
        if form == "chat":
            if chat is None:
                raise SpecError("a chat template is needed")
            return chat(stem), tuple(letters)
        return stem, tuple(f" {letter}" for letter in letters)

    def lengths(self, form: Form) -> tuple[int, ...]:
        """The characters of each answer, by which acc_norm divides."""
        return tuple(len(choice) for choice in self.choices) if form == "cloze" else (1,) * len(self.choices)


def read_questions(path: Path, limit: int | None = None, seed: int | None = None) -> tuple[Question, ...]:
    """Read a file of questions, one JSON object per line.

    Args:
        path: ARC's own JSONL, or one with the fields of HellaSwag or MMLU.
        limit: only so many: the first ones, or with a seed a sample.
        seed: of the sample.

    Raises:
        SourceError: names the first line that is no question. SpecError: for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise SpecError(f"the limit is {limit} questions; expected 1 or more")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: is no UTF-8 text (byte {error.start}); expected questions as JSON lines") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_question(json.loads(line), number))
        except (ValueError, RecursionError) as error:
            said = f"is not JSON ({error})" if isinstance(error, json.JSONDecodeError | RecursionError) else error
            raise SourceError(f"{path}: line {number} {said}; expected a question as in {_KINDS}") from error
    if not found:
        raise SourceError(f"{path}: has no questions; expected one JSON object per line, as in {_KINDS}")
    if limit is None or limit >= len(found):
        return tuple(found)
    if seed is None:
        return tuple(found[:limit])
    return tuple(found[i] for i in sorted(np.random.default_rng(seed).permutation(len(found))[:limit]))


def _question(data: Any, number: int) -> Question:
    """A question; ValueError says what is wrong."""
    if not isinstance(data, dict):
        raise ValueError(f"holds a JSON {type(data).__name__}")  # noqa: TRY004 - a value, for one handler
    name = str(data.get("id", data.get("ind", number)))
    if "endings" in data:
        stem, choices, asked = _hellaswag_stem(data), tuple(map(_clean, _texts(data, "endings"))), False
        right = _index(data, "label", choices)
    elif "answerKey" in data:
        inner = data.get("choices")
        if not isinstance(inner, dict):
            raise ValueError("has no 'choices' with 'text' and 'label'")
        stem, choices, asked = _text(data, "question"), _texts(inner, "text"), True
        labels = _texts(inner, "label")
        if len(labels) != len(choices):
            raise ValueError(f"has {len(choices)} choices and {len(labels)} labels")
        if data["answerKey"] not in labels:
            raise ValueError(
                f"has the answerKey {data['answerKey']!r}, which is none of its labels {', '.join(labels)}"
            )
        right = labels.index(data["answerKey"])
    elif "answer" in data:
        stem, choices, asked = _text(data, "question"), _texts(data, "choices"), True
        right = _index(data, "answer", choices)
    else:
        raise ValueError("has no 'answerKey', 'answer' or 'endings'")
    if not 2 <= len(choices) <= len(string.ascii_uppercase):
        raise ValueError(f"has {len(choices)} choices, not 2 to {len(string.ascii_uppercase)}")
    return Question(name, stem, choices, right, asked)


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"has no text under {key!r}")
    return value


def _texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise ValueError(f"has no list of texts under {key!r}")
    return tuple(value)


def _index(data: Mapping[str, Any], key: str, choices: Sequence[str]) -> int:
    value = data.get(key)
    if isinstance(value, str) and len(value) == 1 and value in string.ascii_uppercase:
        value = string.ascii_uppercase.index(value)
    elif isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(choices):
        raise ValueError(f"has {key!r} {data.get(key)!r}, which is none of its {len(choices)} choices")
    return value


def _hellaswag_stem(data: Mapping[str, Any]) -> str:
    if "ctx_a" in data and "ctx_b" in data:
        ctx = f"{data['ctx_a']} {str(data['ctx_b']).capitalize()}"
    else:
        ctx = _text(data, "ctx")
    return _clean(f"{data['activity_label']}: {ctx}" if "activity_label" in data else ctx)


def _clean(text: str) -> str:
    """Without the marks of WikiHow, as lm-evaluation-harness cleans HellaSwag."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
