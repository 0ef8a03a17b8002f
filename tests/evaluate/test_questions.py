"""Files of questions: every kind read, every fault named by its line, every form put as the harness puts it."""

from __future__ import annotations

import json

import pytest

from splitquant.errors import SourceError, SpecError
from splitquant.evaluate.questions import Question, read_questions

GOOD = {"id": "a", "question": "Q?", "choices": {"text": ["x", "yy"], "label": ["1", "2"]}, "answerKey": "2"}
HELLASWAG = {
    "ind": 7,
    "activity_label": "Cooking",
    "ctx_a": "A man cooks. [step]",
    "ctx_b": "he then",
    "endings": ["eats  it.", "[substeps] sleeps. [title] Rest"],
    "label": "1",
}


def written(tmp_path, *lines):
    """A file of lines."""
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return file


def test_arc(tmp_path):
    """ARC's own lines, labels 1 to 4 too; empty lines are no questions."""
    assert read_questions(written(tmp_path, GOOD, "", GOOD)) == (Question("a", "Q?", ("x", "yy"), 1),) * 2


def test_hellaswag(tmp_path):
    """HellaSwag is cleaned as lm-evaluation-harness cleans it, and is a text to go on with."""
    (found,) = read_questions(written(tmp_path, HELLASWAG))
    assert found == Question("7", "Cooking: A man cooks. He then", ("eats it.", " sleeps.. Rest"), 1, asked=False)
    assert found.put("cloze") == ("Cooking: A man cooks. He then", (" eats it.", "  sleeps.. Rest"))


@pytest.mark.parametrize("answer", [1, "1", "B"])
def test_mmlu(tmp_path, answer):
    """MMLU: the answer as a number or as a letter."""
    line = {"question": " Q ", "choices": ["x", "y", "z"], "answer": answer}
    assert read_questions(written(tmp_path, line)) == (Question("1", " Q ", ("x", "y", "z"), 1),)


def test_forms():
    """The texts of lm-evaluation-harness: ARC's for cloze, MMLU's for letters."""
    question = Question("a", "Q? ", ("x", "yy"), 1)
    assert question.put("cloze") == ("Question: Q? \nAnswer:", (" x", " yy"))
    assert question.put("letters") == ("Q?\nA. x\nB. yy\nAnswer:", (" A", " B"))
    assert question.put("chat", lambda text: f"<{text}>") == ("<Q?\nA. x\nB. yy\nAnswer:>", ("A", "B"))
    assert question.lengths("cloze") == (1, 2)
    assert question.lengths("letters") == (1, 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{oops", "is not JSON"),
        ("[1]", "holds a JSON list"),
        ({"question": "Q?"}, "has no 'answerKey', 'answer' or 'endings'"),
        (GOOD | {"answerKey": "C"}, "has the answerKey 'C', which is none of its labels 1, 2"),
        (GOOD | {"question": " "}, "has no text under 'question'"),
        (GOOD | {"choices": ["x", "y"]}, "has no 'choices' with 'text' and 'label'"),
        (GOOD | {"choices": {"text": ["x", 3], "label": ["1", "2"]}}, "has no list of texts under 'text'"),
        (GOOD | {"choices": {"text": ["x"], "label": ["1", "2"]}}, "has 1 choices and 2 labels"),
        (GOOD | {"choices": {"text": ["x"], "label": ["2"]}}, "has 1 choices, not 2 to 26"),
        ({"question": "Q?", "choices": ["x", "y"], "answer": 2}, "has 'answer' 2, which is none of its 2 choices"),
        ({"question": "Q?", "choices": ["x", "y"], "answer": True}, "has 'answer' True"),
        (HELLASWAG | {"label": ""}, "has 'label' ''"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_faults(tmp_path, line, says):
    """The file, the line by number, what was found and what is expected."""
    file = written(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(SourceError) as error:
        read_questions(file)
    assert str(error.value).startswith(f"{file}: line 3 {says}")
    assert "expected a question as in ARC" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), (b"\n\n", "has no questions"), (b"\xff", "is no UTF-8 text")]
)
def test_no_questions(tmp_path, content, says):
    """Files without any question."""
    file = tmp_path / "q"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SourceError, match=says):
        read_questions(file)


def test_limit_and_seed(tmp_path):
    """The first ones, or a sample that the seed decides, in the file's order."""
    file = written(tmp_path, *[GOOD | {"id": str(i)} for i in range(50)])
    assert [q.name for q in read_questions(file, 3)] == ["0", "1", "2"]
    sample = [int(q.name) for q in read_questions(file, 10, seed=1)]
    assert sample == sorted(set(sample))
    assert len(sample) == 10
    assert sample != list(range(10))
    assert sample == [int(q.name) for q in read_questions(file, 10, seed=1)]
    assert sample != [int(q.name) for q in read_questions(file, 10, seed=2)]
    assert len(read_questions(file, 99, seed=1)) == 50
    with pytest.raises(SpecError, match="limit is 0"):
        read_questions(file, 0)
