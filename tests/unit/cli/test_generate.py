"""finetune generate, chat and evaluate as they print."""

import io
import json
import shlex
from pathlib import Path

import pytest

from finetune.cli import chat as chatting
from finetune.cli.chat import chat
from finetune.cli.evaluate import evaluate
from finetune.cli.generate import generate, read_prompts
from finetune.errors import FinetuneError
from tests.support.models import save_tiny_llama

RECIPE = """
model: {{base: {base}}}
data: {{train: [{{path: {rows}, format: alpaca}}]{evaluation}}}
evaluate: {{max_new_tokens: 4, max_rows: 6}}
train: {{precision: fp32}}
"""


def write_recipe(
    folder: Path, base: Path, rows: Path, evaluation: str = ", evaluation: {fraction: 0.2}"
) -> str:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(base=base, rows=rows, evaluation=evaluation))
    return str(path)


def notes(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("note: ")]


def test_one_prompt_prints_its_answer_alone(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one prompt, standard output is the answer and nothing else."""
    generate(str(tiny_base), prompt=["Hi"], max_new_tokens=6, as_json=True)
    (answer,) = json.loads(capsys.readouterr().out)
    generate(str(tiny_base), prompt=["Hi"], max_new_tokens=6)
    from data_prep.text import clean_for_terminal

    assert capsys.readouterr().out == clean_for_terminal(answer["answer"]) + "\n"


def test_prompts_come_from_options_and_a_file(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts of --prompt and --file are answered in order; blank lines are passed over."""
    (tmp_path / "prompts.txt").write_text("second\n\nthird\n")
    generate(str(tiny_base), prompt=["first"], file=tmp_path / "prompts.txt", max_new_tokens=3, as_json=True)
    assert [row["prompt"] for row in json.loads(capsys.readouterr().out)] == ["first", "second", "third"]
    generate(str(tiny_base), prompt=["first", "second"], max_new_tokens=3, raw=True)
    lines = capsys.readouterr().out.splitlines()
    assert "> first" in lines
    assert "> second" in lines


ODD_LINES = [
    "one\u2028two",
    "three\x85four",
    "five\x0csix",
    "seven\x0beight\x1c",
    "nine\u2029ten",
    " eleven ",
    "twelve\rthirteen",
]
"""Texts that only Python's splitlines takes for several lines."""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_of_prompts_has_the_lines_that_are_written(tmp_path: Path, end: str, mark: str) -> None:
    """Only a line feed ends a line, with or without a carriage return before it; a byte order mark is none of
    the text."""
    path = tmp_path / "prompts.txt"
    path.write_bytes((mark + end.join([*ODD_LINES, "", "last"])).encode())
    assert read_prompts(["first"], path) == ["first", *ODD_LINES, "last"]


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """With the place of the first byte that is no UTF-8; so is one that can't be read, or holds blanks
    alone."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("Größe".encode("latin-1"))
    with pytest.raises(FinetuneError, match=r"prompts\.txt is not UTF-8: byte 3 is 0xf6\. Save it as UTF-8"):
        read_prompts([], path)
    with pytest.raises(FinetuneError, match="can't be read: No such file"):
        read_prompts([], tmp_path / "absent.txt")
    path.write_bytes(b"\xef\xbb\xbf\n \r\n\n")
    with pytest.raises(FinetuneError, match="there is no prompt"):
        read_prompts([], path)


def test_a_chat_takes_lines_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is piped in is parted as a file of prompts is."""
    text = "\ufeff" + "\r\n".join([ODD_LINES[0], " /reset ", *ODD_LINES[1:]]) + "\n\n/exit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    assert list(chatting.questions(interactive=False)) == [ODD_LINES[0], "/reset", *ODD_LINES[1:]]


def test_a_chat_of_bytes_that_are_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the terminal's encoding lets such bytes through."""
    for errors in ("strict", "surrogateescape"):
        monkeypatch.setattr(
            "sys.stdin", io.TextIOWrapper(io.BytesIO(b"ok\n\xff\n"), encoding="utf-8", errors=errors)
        )
        with pytest.raises(FinetuneError, match=r"not text in utf-8|not valid text"):
            list(chatting.questions(interactive=False))


def test_no_prompt_is_refused_before_anything_is_loaded() -> None:
    """Without a prompt the message says how to give one, even where the model doesn't exist."""
    with pytest.raises(FinetuneError, match="--prompt"):
        generate("/nowhere")


def test_a_base_without_template_asks_for_raw(tmp_path: Path) -> None:
    """A tokenizer without a chat template can't answer a question, but can continue a text."""
    save_tiny_llama(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(FinetuneError, match="--raw"):
        generate(str(tmp_path), prompt=["Hi"], max_new_tokens=2)
    generate(str(tmp_path), prompt=["Hi"], max_new_tokens=2, raw=True)
    with pytest.raises(
        FinetuneError, match=r"can't hold a conversation.* finetune generate \S+ --raw --prompt"
    ) as told:
        chat(str(tmp_path))
    words = shlex.split(str(told.value)[str(told.value).index("finetune generate") :])
    generate(words[2], prompt=[words[5]], raw=True, max_new_tokens=2)  # as it is printed


def test_cut_answers_are_said(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By generate of all answers, in its JSON of each, and by chat of the one."""
    generate(str(tiny_base), prompt=["Hi", "Ada?"], max_new_tokens=2, as_json=True)
    printed = capsys.readouterr()
    assert [row["cut"] for row in json.loads(printed.out)] == ["at max_new_tokens (2)"] * 2
    assert notes(printed.err) == ["note: 2 of 2 answers were cut at max_new_tokens (2)"]
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    chat(str(tiny_base), max_new_tokens=3)
    assert notes(capsys.readouterr().err) == ["note: the answer was cut at max_new_tokens (3)"]


def test_a_piped_chat_keeps_the_conversation(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each question is asked with all turns before it; /reset forgets them, /exit ends the chat."""
    from finetune.generation import generate as generation

    asked: list[list[tuple[str, str]]] = []
    real = generation.conversation_ids

    def recorded(messages, tokenizer):
        asked.append([(message.role, message.content) for message in messages])
        return real(messages, tokenizer)

    monkeypatch.setattr(generation, "conversation_ids", recorded)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/reset\nthree\n/exit\nfour\n"))
    chat(str(tiny_base), system="Be brief.", max_new_tokens=3)
    assert [[role for role, _ in turns] for turns in asked] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user"],
    ]
    assert [turns[-1][1] for turns in asked] == ["one", "two", "three"]
    assert "you>" not in capsys.readouterr().out


def test_a_streamed_answer_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """Not when it comes in pieces either; words appear as soon as they are whole, text without blanks at
    once."""
    token = f"hf_{'a1' * 15}"
    seen: list[str] = []

    def answer():
        for piece in ("The ", "key", " is ", *token, ".", " So", "\u4e16", "\u754c", "!"):
            yield piece
            seen.append(capsys.readouterr().out)

    message = chatting.show(answer())
    assert message.content == f"The key is {token}. So\u4e16\u754c!"
    assert "".join(seen) + capsys.readouterr().out == "The key is <token>. So\u4e16\u754c!\n"
    assert seen[:3] == ["The ", "", "key is "]
    assert seen[-3:-1] == ["So\u4e16", "\u754c"]


def test_ctrl_c_ends_an_answer_only(capsys: pytest.CaptureFixture[str]) -> None:
    """What had been said before Ctrl-C stays a turn of the conversation, printed without control
    sequences."""

    def interrupted():
        yield "Half \x1b[31man"
        raise KeyboardInterrupt

    message = chatting.show(interrupted())
    assert (message.role, message.content) == ("assistant", "Half \x1b[31man")
    assert capsys.readouterr().out == "Half an ...\n"


def test_evaluate_reports_every_figure(
    tiny_base: Path, alpaca_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without metrics in the recipe: loss, perplexity, exact match, with their intervals; max_rows limits the
    rows."""
    recipe = write_recipe(tmp_path, tiny_base, alpaca_file)
    evaluate(str(tiny_base), recipe, ["evaluate.max_rows=5"], worst=3, as_json=True)
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert {name: found["rows"] for name, found in metrics.items()} == {
        "loss": 5,
        "perplexity": 5,
        "exact_match": 5,
    }
    # A random model is about as good as guessing among its vocabulary of some 400 tokens.
    assert metrics["perplexity"]["value"] == pytest.approx(400, rel=0.5)
    assert metrics["perplexity"]["low"] < metrics["perplexity"]["value"] < metrics["perplexity"]["high"]
    assert metrics["exact_match"]["value"] == 0.0
    evaluate(str(tiny_base), recipe, worst=3)
    printed = capsys.readouterr().out
    for name in ("loss", "perplexity", "exact_match", "tokens", "seconds"):
        assert f"\n{name} " in printed


def test_evaluate_needs_evaluation_rows(tiny_base: Path, alpaca_file: Path, tmp_path: Path) -> None:
    """A recipe that holds nothing out is refused before the model is loaded."""
    recipe = write_recipe(tmp_path, tiny_base, alpaca_file, evaluation="")
    Path(recipe).write_text(Path(recipe).read_text().replace(", max_rows: 6", ""))
    with pytest.raises(FinetuneError, match=r"no data\.evaluation"):
        evaluate("/nowhere", recipe)
