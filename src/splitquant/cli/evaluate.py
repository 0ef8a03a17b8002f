"""`splitquant evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitquant.cli.arguments import Json, Quiet

if TYPE_CHECKING:
    from splitquant.evaluate import Estimate, Evaluation, TaskResults


class QuestionForm(StrEnum):
    """How a question is put."""

    cloze = "cloze"
    letters = "letters"
    chat = "chat"


def evaluate(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR|FILE", help="Hugging Face folder, float or quantized; for --images also .onnx."),
    ],
    *,
    against: Annotated[
        Path | None, typer.Option(metavar="FLOAT", help="The float model, to compare with by pairs.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A plain text: perplexity, bits per byte; KL and top-1 to FLOAT."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of --text: tokens read together. [default: 1024, or what DIR reads]"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(metavar="N", help="Of --text: tokens between windows. [default: no overlap]")
    ] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="Of --text: only the first N tokens.")] = None,
    choices: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Multiple choice: JSON lines as in ARC, HellaSwag or MMLU."),
    ] = None,
    form: Annotated[
        QuestionForm,
        typer.Option(help="Of --choices: likelihood of answers, or of letters, or those by chat template."),
    ] = QuestionForm.cloze,
    embeddings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A sentence per line: cosine of embeddings to those of FLOAT.")
    ] = None,
    images: Annotated[Path | None, typer.Option(metavar="FILE", help="Labelled images in an .npz file: top-1.")] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Of --images: mean per channel, pixels being 0 to 1.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Of --images: standard deviation per channel.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Tasks of lm-evaluation-harness (extra: lm-eval), offline.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Only N questions, sentences, images: the first (see --seed).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="With --limit: a sample of questions and images, not the first.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Questions, windows, sentences, images at once.")] = 8,
    packed: Annotated[
        bool, typer.Option("--packed", help="Decode quantized weights wherever they are used: less memory, slower.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what is finished; the same command goes on from there.")
    ] = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure what a model still can do, float or quantized, every figure with its standard error.

    Example: splitquant evaluate DST --against SRC --text wiki.txt --tokens 8192 --choices ARC-Easy-Test.jsonl
    """
    from splitquant.cli.terminal import CAN_GO_ON, check_json_target, count_progress, write_json
    from splitquant.evaluate import Asked, Run
    from splitquant.evaluate import evaluate as run_all

    given = [path for path in (source, against, text, *(choices or ()), embeddings, images, state) if path is not None]
    check_json_target(json_file, *given)
    if state is not None:
        check_json_target(state, *(path for path in given if path != state))
    asked = Asked(
        text=text,
        choices=tuple(choices or ()),
        form=form.value,
        embeddings=embeddings,
        images=images,
        tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else (),
        window=window,
        stride=stride,
        tokens=tokens,
        mean=_numbers("--mean", mean),
        deviation=_numbers("--std", std),
        limit=limit,
        seed=seed,
        packed=packed,
    )
    after = CAN_GO_ON if state is not None else "with --state FILE the same command would go on from there"
    with count_progress(quiet=quiet, after=after) as progress:
        found = run_all(source, asked, against=against, run=Run(batch_size, progress, state))
    write_json(json_file, found.to_dict())
    if not quiet and str(json_file) != "-":
        _show(found)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    from splitquant.errors import SpecError

    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"{option} is {text!r}; expected a number per channel, for instance 0.5,0.5,0.5") from None


def _show(found: Evaluation) -> None:
    from rich.table import Table

    from splitquant.cli.tables import show
    from splitquant.cli.terminal import say

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("measure")
    table.add_column(found.model, justify="right")
    if found.float_model is not None:
        table.add_column(f"{found.float_model} (float)", justify="right")
    for measure, *values in _rows(found):
        table.add_row(measure, *values[: len(table.columns) - 1])
    show(table)
    for line in _remarks(found):
        say(line)


def _rows(found: Evaluation) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    if found.perplexity is not None:
        beside = found.divergence.reference if found.divergence is not None else None
        rows.append(
            ("perplexity", _figure(found.perplexity.perplexity), "" if beside is None else _figure(beside.perplexity))
        )
        rows.append(
            (
                "bits per byte",
                _figure(found.perplexity.bits_per_byte),
                "" if beside is None else _figure(beside.bits_per_byte),
            )
        )
    if found.divergence is not None:
        rows.append(("KL(float || model), nats", _figure(found.divergence.kl), ""))
        rows.append(("same likeliest token", _share(found.divergence.agreement), ""))
    for one in found.choices:
        rows += [
            (
                f"{one.name}, {one.answers.form}: {measure}",
                _share(getattr(one.answers, measure)),
                "" if one.float_answers is None else _share(getattr(one.float_answers, measure)),
            )
            for measure in (("acc", "acc_norm") if one.answers.form == "cloze" else ("acc",))
        ]
    if found.embeddings is not None:
        rows.append(("cosine to float embeddings", _figure(found.embeddings.cosine), ""))
        rows.append(("worst sentence", f"{found.embeddings.worst:.4f}", ""))
        rows.append(("same nearest sentence", _share(found.embeddings.nearest), ""))
    if found.images is not None:
        rows.append(
            ("top-1", _share(found.images.top1), "" if found.float_images is None else _share(found.float_images.top1))
        )
    return [*rows, *_task_rows(found.tasks, found.float_tasks)]


def _task_rows(tasks: TaskResults | None, beside: TaskResults | None) -> list[tuple[str, str, str]]:
    return [
        (f"lm-eval {task}: {metric}", _figure(value), "" if beside is None else _figure(beside.tasks[task][metric]))
        for task, metrics in (tasks.tasks.items() if tasks is not None else ())
        for metric, value in metrics.items()
    ]


def _remarks(found: Evaluation) -> list[str]:
    lines = []
    if found.perplexity is not None:
        text = found.perplexity.text
        lines.append(f"text: {text}; {text.scored:,} scored")
    for one in found.choices:
        lines.append(f"{one.name}: {len(one.answers.answers):,} questions, chance is {100 * one.answers.chance:.1f} %")
        lines += [f"{one.name}: {pair}" for pair in one.pairs]
    if found.embeddings is not None:
        lines.append(f"{found.embeddings.sentences:,} sentences")
    if found.images is not None:
        lines.append(f"{len(found.images.labels):,} images")
    if found.image_pairs is not None:
        lines.append(str(found.image_pairs))
    return lines


def _figure(value: Estimate | None) -> str:
    """A figure with its standard error, both to the digit that the error has two of."""
    import math

    if value is None:
        return "unknown"
    if not math.isfinite(value.error) or value.error <= 0:
        return f"{value.value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(value.error)))
    return f"{value.value:.{digits}f} ± {value.error:.{digits}f}"


def _share(value: Estimate) -> str:
    return f"{100 * value.value:.1f} ± {100 * value.error:.1f} %"
