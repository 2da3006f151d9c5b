"""Questions of evaluation rows, answers to them, and the programs that answers hold."""

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from data_prep.chat.tokenization import tokenize
from data_prep.messages import Conversation, Message, PlainText, ToolCall
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import FinetuneError
from finetune.evaluation.predictions import answer_questions, questions_of
from finetune.evaluation.report import by_row, report_of
from finetune.evaluation.sandbox.programs import code_in, program_of, run_answers
from finetune.evaluation.sandbox.runner import why_no_sandbox
from finetune.recipe.schema.evaluate import EvaluateSection
from finetune.scoring.measured import Measured, Prediction, Question


def chat(question: str, answer: str, *references: str, tests: str = "") -> Conversation:
    return Conversation(
        (Message("user", question), Message("assistant", answer)), references=references, tests=tests
    )


def test_rows_that_ask_the_same_are_one_question(tiny_base: Path) -> None:
    """With the answers of all of them, each once, in their order; a plain text asks nothing."""
    rows = [
        chat("a", "1", "2"),
        PlainText("", "text"),
        chat("b", "3"),
        chat("a", "4", "2", tests="assert x"),
        PlainText("p", "q"),
    ]
    tokenizer = load_tokenizer(tiny_base)
    found = questions_of([(f"row {number}", row) for number, row in enumerate(rows)], tokenizer)
    assert [(q.place, q.text, q.references, q.tests) for q in found] == [
        ("row 0", "a", ("1", "2", "4"), "assert x"),
        ("row 2", "b", ("3",), ""),
        ("row 4", "p", ("q",), ""),
    ]
    apart = questions_of([("x", rows[0]), ("y", rows[3])], tokenizer, merged=False)
    assert [q.references for q in apart] == [("1", "2"), ("4", "2")]


@pytest.mark.parametrize("special", [True, False])
def test_a_tool_call_is_compared_as_it_is_generated(tiny_base: Path, special: bool) -> None:
    """An answer has no special tokens, so the reference has none either: what was learned word for word
    counts as right."""
    tokenizer = load_tokenizer(tiny_base, chat_template="chatml")
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    call = Message("assistant", "", tool_calls=(ToolCall("look_up", {"order": 7}),))
    example = Conversation((Message("user", "Where is order 7?"), call))
    (question,) = questions_of([("row 1", example)], tokenizer)
    document = tokenize([("row 1", example)], tokenizer, "last")[0]
    first, end, _ = document.spans[-1]
    said = tokenizer.decode(
        document.token_ids[first:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert '"look_up"' in said
    assert ("<tool_call>" in said) is not special
    assert by_row("exact_match", Measured(answers=[Prediction(question, (said,))])) == [1.0]


def test_a_row_without_an_answer_is_refused(tiny_base: Path) -> None:
    """There is nothing to compare with; the row is named."""
    with pytest.raises(FinetuneError, match=r"rows\.json:3 has no answer to compare with"):
        questions_of([("rows.json:3", PlainText("prompt", " \n"))], load_tokenizer(tiny_base))


def test_samples_are_drawn_for_each_question(model: LlamaForCausalLM, tiny_base: Path) -> None:
    """So many answers each, the same for the same seed; one answer is the likeliest."""
    tokenizer = load_tokenizer(tiny_base)
    questions = questions_of([("a", chat("Hi", "x")), ("b", chat("What is it?", "y"))], tokenizer)
    drawn = EvaluateSection(samples_per_prompt=3, temperature=2.0, max_new_tokens=5)
    first, again = (answer_questions(model, tokenizer, questions, drawn, seed=4) for _ in range(2))
    assert first == again
    assert [len(answer.texts) for answer in first] == [3, 3]
    assert len({text for answer in first for text in answer.texts}) > 2
    cuts = [cut for answer in first for cut in answer.cuts]
    assert len(cuts) == 6
    notes = report_of(Measured(answers=first), ["exact_match"], intervals=False).notes
    assert f"{cuts.count('at max_new_tokens (5)')} of 6 answers were cut at max_new_tokens (5)" in notes
    told: list[tuple[int, int]] = []
    one = EvaluateSection(max_new_tokens=5, batch_size=1)
    greedy = answer_questions(model, tokenizer, questions, one, progress=lambda *pair: told.append(pair))
    assert [len(answer.texts) for answer in greedy] == [1, 1]
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"), ("Here:\n```py\nx = 1\n``` and ```\ny\n```", "x = 1\n"), ("x = 1", "x = 1"),
        ("```\nx = 1", "x = 1"), ("```Python \r\nx = 1\r\n```", "x = 1\r\n"), ("", ""),
    ],
)  # fmt: skip
def test_the_code_of_an_answer(text: str, code: str) -> None:
    """Its first fenced block, also one that was cut short; without any, all of it."""
    assert code_in(text) == code
    assert bool(program_of(text, "assert x")) is bool(code)


@pytest.mark.skipif(why_no_sandbox() is not None, reason=f"no sandbox here: {why_no_sandbox()}")
def test_programs_run_with_their_tests() -> None:
    """Right code passes; wrong, endless and empty answers are counted, each with its reason."""
    tests = "assert double(2) == 4\nassert double(-1) == -2"
    question = Question("rows.json:1", chat("q", "a"), (1,), ("a",), tests)
    texts = (
        "```python\ndef double(x):\n    return 2 * "
        "x\n```", "def double(x): return x + 2", "while True: pass", "",
        "import sys; sys.exit(0)", "double = lambda x: open('/etc/passwd')",
        "double = abs\ntests = '''", "double = abs\n@print", "double = abs; print(\\",
    )  # fmt: skip
    (verdicts,) = run_answers([Prediction(question, texts)], seconds=2.0)
    assert [verdict.passed for verdict in verdicts] == [True, *[False] * 8]
    assert [bool(verdict.reason) for verdict in verdicts] == [False, *[True] * 8]
    assert all(verdict.reason.startswith("SyntaxError") for verdict in verdicts[6:])
    assert "2 s" in verdicts[2].reason
    assert "/etc/passwd" in verdicts[5].reason
