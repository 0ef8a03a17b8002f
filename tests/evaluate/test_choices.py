"""Questions put to models, and two models' answers in pairs."""

from __future__ import annotations

import pytest

from builders.language_models import direct
from splitquant.errors import SourceError, SpecError
from splitquant.evaluate import Answer, Choices, Images, Run, choices, paired_answers, paired_images
from splitquant.evaluate.choices import tokens_of
from splitquant.evaluate.questions import Question


def answers(*rows):
    """Choices from (right, scores, lengths)."""
    return Choices("m", "cloze", tuple(Answer(str(i), *row) for i, row in enumerate(rows)))


def test_acc_and_acc_norm():
    """acc takes the likeliest choice, acc_norm the likeliest per character, the first of equal ones."""
    found = answers((0, (-2.0, -3.0), (1, 4)), (1, (-2.0, -3.0), (1, 4)), (0, (-1.0, -1.0), (1, 1)))
    assert (found.acc.value, found.acc_norm.value) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert [one.chosen for one in found.answers] == [0, 0, 0]
    assert [one.chosen_norm for one in found.answers] == [1, 1, 0]
    assert found.chance == 0.5


@pytest.mark.parametrize("form", ["cloze", "letters", "chat"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_scores(language_model, arc, form, batch):
    """Each answer's score is that of its own tokens after the context's, whatever the batch."""
    model = language_model(chat=form == "chat")
    found = choices(model, arc, form=form, limit=6, run=Run(batch))
    assert len(found.answers) == 6
    (first, *_) = found.answers
    stem = {
        "cloze": "Question: What is wet?\nAnswer:",
        "letters": "What is wet?\nA. fire\nB. water\nC. a rock of stone\nD. sand\nAnswer:",
        "chat": "[user]What is wet?\nA. fire\nB. water\nC. a rock of stone\nD. sand\nAnswer:[assistant]",
    }[form]
    ends = {"cloze": " water", "letters": " B", "chat": "B"}[form]
    whole = model.tokenizer(stem + ends).input_ids
    cut = len(model.tokenizer(stem).input_ids)
    assert whole[0] == 1
    assert first.scores[1] == pytest.approx(direct(model.model, whole[:cut], whole[cut:]), abs=5e-4)


def test_spaces_go_with_the_answer(language_model):
    """Spaces at a context's end belong to the answer's tokens, as in lm-evaluation-harness."""
    model = language_model()
    question = Question("q", "He goes ", ("on", "off"), 0, asked=False)
    asked = tokens_of(model, question, "cloze")
    assert asked.context == tuple(model.encode("He goes"))
    assert asked.answers[0] == tuple(model.encode("He goes  on")[len(asked.context) :])


def test_answers_that_are_too_long(language_model):
    """The model cannot read the answer itself."""
    question = Question("q7", "Why?", ("a", "b" * 200), 0)
    with pytest.raises(SourceError, match="question 'q7': an answer has 201 tokens and llama reads 128"):
        choices(language_model(), [question])


def test_refused(language_model, arc):
    """Another form, or no chat template."""
    with pytest.raises(SpecError, match="form is 'essay'; expected cloze, letters, chat"):
        choices(language_model(), arc, form="essay")
    with pytest.raises(SpecError, match="llama has no chat template"):
        choices(language_model(), arc, form="chat")


def test_pairs():
    """Changed, lost and won answers; the p of chance; the error of paired answers."""
    first = answers(*[(0, (-1.0, -2.0), (1, 1))] * 9, (1, (-1.0, -2.0), (1, 1)), (0, (-2.0, -1.0), (1, 1)))
    second = answers(*[(0, (-2.0, -1.0), (1, 1))] * 9, (1, (-2.0, -1.0), (1, 1)), (0, (-2.0, -1.0), (1, 1)))
    found = paired_answers(first, second)
    assert (found.questions, found.changed, found.lost, found.won) == (11, 10, 9, 1)
    assert found.p == pytest.approx(22 / 1024)
    assert found.difference.value == pytest.approx(-8 / 11)
    assert "a real difference (McNemar's p = 0.021)" in str(found)
    same = paired_answers(first, first)
    assert (same.changed, same.p, same.difference.value) == (0, 1.0, 0)
    assert "11 questions cannot tell this from chance" in str(same)


def test_pairs_by_characters():
    """acc_norm has pairs of its own."""
    first, second = answers((1, (-2.0, -3.0), (1, 4))), answers((1, (-2.0, -9.0), (1, 4)))
    assert paired_answers(first, second).changed == 0
    assert paired_answers(first, second, norm=True).lost == 1


def test_only_equal_questions_make_pairs():
    """Other questions are refused."""
    with pytest.raises(SpecError, match="other questions"):
        paired_answers(answers((0, (-1.0, -2.0), (1, 1))), answers((1, (-1.0, -2.0), (1, 1))))
    with pytest.raises(SpecError, match="other images"):
        paired_images(Images("a", (1,), (1,)), Images("b", (2,), (1,)))
