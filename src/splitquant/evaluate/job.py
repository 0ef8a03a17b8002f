"""Everything that is asked of a model in one go, and of the float one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitquant.errors import SpecError
from splitquant.evaluate.choices import Choices, choices
from splitquant.evaluate.divergence import Divergence, KeptReference, divergence
from splitquant.evaluate.embeddings import Embeddings, embeddings, open_encoder
from splitquant.evaluate.harness import TaskResults, lm_eval_tasks
from splitquant.evaluate.images import Images, Labelled, images, open_classifier, read_images
from splitquant.evaluate.model import LanguageModel, open_language_model
from splitquant.evaluate.pairs import PairedAnswers, paired_answers, paired_images
from splitquant.evaluate.perplexity import Perplexity, perplexity
from splitquant.evaluate.questions import Form, Question, read_questions
from splitquant.evaluate.run import PLAIN, Run
from splitquant.evaluate.texts import read_text


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a model.

    text: a plain text file, with window, stride and tokens as in `perplexity`. choices: files of questions, put in the form
    `form`. embeddings: a text file with a sentence per line. images: labelled ones in an .npz file, prepared by `mean` and
    `deviation`. tasks: of lm-evaluation-harness. limit, seed: of questions, sentences and images only so many: the first, or
    with a seed a sample. packed: as in `open_language_model`.
    """

    text: Path | None = None
    choices: Sequence[Path] = ()
    form: Form = "cloze"
    embeddings: Path | None = None
    images: Path | None = None
    tasks: Sequence[str] = ()
    window: int | None = None
    stride: int | None = None
    tokens: int | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    limit: int | None = None
    seed: int | None = None
    packed: bool = False

    def check(self, source: Path, against: Path | None) -> None:
        """Refuse what cannot be done before any model is loaded."""
        language = self.text is not None or bool(self.choices) or bool(self.tasks)
        if not language and self.embeddings is None and self.images is None:
            raise SpecError("nothing is asked; give --text, --choices, --embeddings, --images or --tasks")
        if self.embeddings is not None and against is None:
            raise SpecError("embeddings mean nothing by themselves; give the float model with --against")
        onnx = [path for path in (source, against) if path is not None and path.suffix.lower() == ".onnx"]
        if onnx and (language or self.embeddings is not None):
            raise SpecError(
                f"{onnx[0]}: of .onnx files only --images is evaluated; give a Hugging Face folder for the rest"
            )
        if self.limit is not None and self.limit < 1:
            raise SpecError(f"the limit is {self.limit}; expected 1 or more")
        if (self.mean is None) != (self.deviation is None):
            raise SpecError("--mean and --std go together; give both or none")


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """A file of questions, the model's answers, the float model's, and the pairs of both, by acc and acc_norm."""

    name: str
    answers: Choices
    float_answers: Choices | None = None
    pairs: tuple[PairedAnswers, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model can do, and the float model beside it where it was given; None and () for what was not asked."""

    model: str
    float_model: str | None
    perplexity: Perplexity | None = None
    divergence: Divergence | None = None
    choices: tuple[QuestionFile, ...] = ()
    embeddings: Embeddings | None = None
    images: Images | None = None
    float_images: Images | None = None
    image_pairs: PairedAnswers | None = None
    tasks: TaskResults | None = None
    float_tasks: TaskResults | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        held = {
            name: getattr(self, name)
            for name in (
                "perplexity",
                "divergence",
                "embeddings",
                "images",
                "float_images",
                "image_pairs",
                "tasks",
                "float_tasks",
            )
        }
        return {
            "model": self.model,
            "float": self.float_model,
            **{name: value.to_dict() for name, value in held.items() if value is not None},
            "choices": [
                {
                    "file": one.name,
                    **one.answers.to_dict(),
                    "float": None if one.float_answers is None else one.float_answers.to_dict(),
                    "pairs": [pair.to_dict() for pair in one.pairs],
                }
                for one in self.choices
            ],
        }


@dataclass(slots=True)
class _Inputs:
    """What is read before any model is loaded, so that a wrong file costs no time."""

    text: str | None = None
    questions: dict[str, tuple[Question, ...]] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    images: Labelled | None = None


def evaluate(source: str | Path, asked: Asked, *, against: str | Path | None = None, run: Run = PLAIN) -> Evaluation:
    """Evaluate a model, float or quantized, and compare it with the float one where that is given; prints nothing.

    Args:
        source: a Hugging Face folder; for images also an .onnx file.
        asked: what is asked of it.
        against: the float model.
        run: how to run.

    Raises:
        SpecError, SourceError, MissingExtraError: see `splitquant.errors`; wrong options and files before a model is loaded.
    """
    path, other = Path(source), None if against is None else Path(against)
    asked.check(path, other)
    inputs = _read(asked)
    found: dict[str, Any] = {}
    if asked.text is not None or asked.choices or asked.tasks:
        found |= _language(path, other, asked, inputs, run)
    if asked.embeddings is not None and other is not None:
        found["embeddings"] = embeddings(open_encoder(other), open_encoder(path), inputs.sentences, run=run)
    if inputs.images is not None:
        found["images"] = images(open_classifier(path), inputs.images, run=run)
        if other is not None:
            found["float_images"] = images(open_classifier(other), inputs.images, run=run)
            found["image_pairs"] = paired_images(found["float_images"], found["images"])
    return Evaluation(_name(path), None if other is None else _name(other), **found)


def _name(path: Path) -> str:
    return path.resolve().name


def _read(asked: Asked) -> _Inputs:
    inputs = _Inputs()
    if asked.text is not None:
        inputs.text = read_text(asked.text)
    for file in asked.choices:
        inputs.questions[str(file)] = read_questions(file, asked.limit, asked.seed)
    if asked.embeddings is not None:
        lines = [line.strip() for line in read_text(asked.embeddings).splitlines() if line.strip()]
        inputs.sentences = lines[: asked.limit]
    if asked.images is not None:
        inputs.images = read_images(asked.images, asked.limit, asked.seed)
        if asked.mean is not None:
            inputs.images = Labelled(inputs.images.pixels, inputs.images.labels, asked.mean, asked.deviation)
    return inputs


def _language(path: Path, other: Path | None, asked: Asked, inputs: _Inputs, run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {}
    beside = None if other is None else open_language_model(other)
    cut: dict[str, Any] = {"window": asked.window, "stride": asked.stride, "tokens": asked.tokens}
    kept = None if beside is None or inputs.text is None else KeptReference(beside, inputs.text, run=run, **cut)
    model = open_language_model(path, packed=asked.packed)
    if inputs.text is not None and kept is None:
        found["perplexity"] = perplexity(model, inputs.text, run=run, **cut)
    elif kept is not None:
        found["divergence"] = divergence(kept, model, run=run)
        found["perplexity"] = found["divergence"].quantized
    found["choices"] = tuple(
        _questions(Path(name).name, questions, model, beside, asked.form, run)
        for name, questions in inputs.questions.items()
    )
    if asked.tasks:
        options: dict[str, Any] = {"limit": asked.limit, "batch": run.batch, "seed": asked.seed or 0}
        found["tasks"] = lm_eval_tasks(model, asked.tasks, **options)
        if beside is not None:
            found["float_tasks"] = lm_eval_tasks(beside, asked.tasks, **options)
    return found


def _questions(  # noqa: PLR0913, PLR0917 - what belongs to a file of questions
    name: str, questions: Sequence[Question], model: LanguageModel, beside: LanguageModel | None, form: Form, run: Run
) -> QuestionFile:
    answers = choices(model, questions, form=form, run=run)
    if beside is None:
        return QuestionFile(name, answers)
    others = choices(beside, questions, form=form, run=run)
    norms = (False, True) if form == "cloze" else (False,)
    return QuestionFile(name, answers, others, tuple(paired_answers(others, answers, norm=norm) for norm in norms))
