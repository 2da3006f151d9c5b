"""Keys of messages and columns beside them: what says whether a turn is learned, what is refused, what is
only counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.audit.audit import audit_lines, audit_of
from data_prep.config import FileSource, FormatName
from data_prep.errors import DataError
from data_prep.formats.parser import parser_of
from data_prep.formats.row_rules import RowRules
from data_prep.messages import Conversation, Message, ToolCall
from data_prep.preparation import prepare
from data_prep.sources import Row
from data_prep.sources.rows import Unreadable
from tests.unit.data_prep.rows import file, section

USER, ANSWER = {"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "Granite."}
AGAIN, RIGHT = {"role": "user", "content": "A fruit."}, {"role": "assistant", "content": "Apple."}

NOT_LEARNED = [
    ("weight", 0), ("weight", 0.0), ("weight", "0"), ("weight", False), ("weight", "false"),
    ("loss_weight", 0), ("loss_scale", 0.0), ("loss", False), ("loss", 0), ("loss", "false"), ("loss", "0"),
    ("loss", " No "), ("loss_mask", 0), ("step_loss_mask", 0), ("train", False), ("train", "FALSE"),
    ("training", False), ("trainable", 0), ("train_on_turn", False), ("learn", "no"), ("supervise", False),
    ("masked", True), ("masked", 1), ("masked", "true"), ("ignore_loss", True), ("no_loss", "yes"),
]  # fmt: skip
LEARNED = [
    ("weight", 1), ("weight", "1.0"), ("weight", True), ("loss", True), ("loss", "1"), ("train", "yes"),
    ("masked", False), ("masked", 0), ("loss", None), ("loss", ""), ("weight", None), ("mask", None),
]  # fmt: skip
REFUSED = [
    ("loss", 0.5, "loss is 0.5; true or false was expected"),
    ("loss", 2.31, "loss is 2.31; true or false was expected"),
    ("loss", "sometimes", "loss is 'sometimes'; true or false"),
    ("loss_mask", [0, 1, 1], "loss_mask is a list; true or false"),
    ("weight", "4,5", "weight is '4,5'; a finite number was expected"),
    ("weight", [1], "weight is a list; a number was"),
    ("weight", -1, "weight is -1; a number from 0 to 1000"),
    ("weight", "1001", "weight is '1001'; a number from 0 to 1000"),
    ("mask", True, "mask is ambiguous: some tools learn a masked turn and others don't; write weight: 0 or 1"),
    ("mask", 0, "mask is ambiguous: some tools"),
    ("train_detail", [{"begin_offset": 0}], "train_detail is not supported"),
    ("eot", False, "eot is not supported"),
    ("channel", "final", "channel is not supported: .*to the source's ignore_columns"),
    ("refusal", "I won't", "refusal is not supported"), ("images", ["a.png"], "images is not supported"),
]  # fmt: skip


def parsed(values: dict[str, Any], format_name: FormatName = "messages", **options: Any) -> Conversation:
    row = Row("rows.jsonl:1", values)
    [(_, example)] = parser_of(
        FileSource.model_validate({"path": "rows.jsonl", "format": format_name} | options), [row]
    ).parse(row)
    assert isinstance(example, Conversation)
    return example


def weights(values: dict[str, Any], format_name: FormatName = "messages") -> list[float | None]:
    return [message.weight for message in parsed(values, format_name).messages]


@pytest.mark.parametrize(("key", "value"), [*NOT_LEARNED, *LEARNED])
def test_whether_a_turn_is_learned(key: str, value: Any) -> None:
    """A key that says so is honoured in any tool's spelling, as a truth value, a number or a text, in both
    forms."""
    marked = 0.0 if (key, value) in NOT_LEARNED else 1.0
    expected = marked if value not in (None, "") else None
    assert weights({"messages": [USER, ANSWER | {key: value}, AGAIN, RIGHT]}) == [None, expected, None, None]
    turns = [{"from": m["role"], "value": m["content"]} for m in (USER, ANSWER, AGAIN, RIGHT)]
    turns[1] |= {key: value}
    assert weights({"conversations": turns}, "sharegpt") == [None, expected, None, None]


@pytest.mark.parametrize(("key", "value", "problem"), REFUSED)
def test_what_is_refused(key: str, value: Any, problem: str) -> None:
    """A value that can't be honoured, and a key that may have a meaning and is not read, are refused by
    name."""
    with pytest.raises(DataError, match=rf"messages\[1\]\.{problem}"):
        parsed({"messages": [USER, ANSWER | {key: value}]})


@pytest.mark.parametrize(("key", "value"), NOT_LEARNED)
def test_user_turns_may_say_that_they_are_not_learned(key: str, value: Any) -> None:
    """They never are, so there it changes nothing."""
    assert weights({"messages": [USER | {key: value}, RIGHT]})[1] is None


@pytest.mark.parametrize(("key", "value"), [("loss", True), ("train", 1), ("weight", 0.5), ("masked", False)])
def test_user_turns_can_not_be_learned_by_a_key(key: str, value: Any) -> None:
    """A user turn that is to be learned is refused, whatever key says so."""
    with pytest.raises(DataError, match="only assistant turns can have a weight"):
        parsed({"messages": [USER | {key: value}, RIGHT]})


def test_keys_that_disagree() -> None:
    """Two keys may say the same, and are refused where they don't."""
    assert weights({"messages": [USER, ANSWER | {"weight": 0, "loss": False, "masked": True}]}) == [None, 0.0]
    with pytest.raises(DataError, match=r"messages\[1\]: its keys loss \(False\) and weight \(1\) disagree"):
        parsed({"messages": [USER, ANSWER | {"weight": 1, "loss": False}]})


def test_what_is_learned_in_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of two answers the one that is marked has no token that is learned; the other's tokens are those of its
    text."""
    rows = [{"messages": [USER, ANSWER | {"loss": "false"}, AGAIN, RIGHT]}]
    data = prepare(section(file(tmp_path / "rows.jsonl", rows, "messages")), tokenizer, seed=0)
    [document] = data.train
    learned = [token for token, weight in zip(document.token_ids, document.weights, strict=True) if weight]
    assert learned == tokenizer("Apple.<|im_end|>", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("values", "format_name"),
    [
        ({"messages": [USER, RIGHT]}, "messages"),
        ({"prompt": [USER], "completion": [RIGHT]}, "prompt_completion"),
        (
            {
                "conversations": [
                    {"from": "human", "value": USER["content"]},
                    {"from": "gpt", "value": "Apple."},
                ]
            },
            "sharegpt",
        ),
        ({"instruction": USER["content"], "output": "Apple."}, "alpaca"),
    ],
)
def test_a_column_with_the_system_message(values: dict[str, Any], format_name: FormatName) -> None:
    """Every format of dialogues reads it; where the messages have one too, the row is refused."""
    said = (Message("system", "Be brief."), Message("user", "Name a fruit."), Message("assistant", "Apple."))
    assert parsed(values | {"system": "Be brief."}, format_name).messages == said
    assert parsed(values | {"say": "Be brief."}, format_name, columns={"system": "say"}).messages == said
    column = next(iter(values))
    if format_name != "alpaca":
        role, text = ("from", "value") if format_name == "sharegpt" else ("role", "content")
        both = values | {"system": "Be brief.", column: [{role: "system", text: "Be long."}, *values[column]]}
        with pytest.raises(
            DataError, match="the conversation already has a system message; remove one of the two"
        ):
            parsed(both, format_name)


CHAT, PLAIN = {"messages": [USER, RIGHT]}, {"prompt": "a", "completion": "b"}
TASK = {"text": "a", "label": "b"}
MEANINGFUL: list[tuple[FormatName, dict[str, Any], dict[str, Any], str]] = [
    ("messages", CHAT, {"system_prompt": "s"}, r"'system_prompt' is not read; did you mean 'system'\? Write columns: \{sys"),
    ("messages", CHAT, {"functions": [{"name": "f"}]}, r"'functions' may change .*columns: \{tools: functions\} reads it"),
    ("messages", CHAT, {"history": [["a", "b"]]}, "'history' may change what is learned, and this format doesn't read it"),
    ("messages", CHAT, {"references": ["a"]}, "'references' may change what is learned"),
    ("messages", CHAT, {"images": ["a.png"]}, "'images' may be media that the texts refer to"),
    ("messages", CHAT, {"label": False}, "'label' says that the answer is bad, .*skip leaves the bad rows out"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {"kto_tag": "false"},
     "'kto_tag' says that the answer is bad"),
    ("messages", CHAT, {"weight": 0.5}, r"'weight' says how much the row counts \(0\.5\)"),
    ("messages", CHAT, {"mask": "User"}, "'mask' says which part of the row is learned"),
    ("messages", CHAT, {"loss_mask": [0, 1]}, "'loss_mask' says which part of the row is learned"),
    ("messages", CHAT, {"split": "validation"}, "'split' says that the row is held out"),
    ("prompt_completion", PLAIN, {"system": "s"}, "system needs a conversation"),
    ("prompt_completion", PLAIN, {"label": "False"}, "'label' says that the answer is bad"),
    ("alpaca", {"instruction": "a", "output": "b"}, {"tools": [{"name": "f"}]}, "'tools' may change what is learned"),
    ("alpaca", {"instruction": "a", "output": "b"}, {"system_message": "s"}, "did you mean 'system'"),
    ("alpaca", {"instruction": "a", "output": "b"}, {"context": "c"}, r"did you mean 'input'\? .*columns: \{input: context\}"),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, {"context": "c"}, "'context' may be part of the question"),
    ("alpaca", {"instruction": "a", "output": "b"}, {"reasoning": "r"}, "'reasoning' may be the reasoning before the answer"),
    ("messages", CHAT, {"reasoning_content": "r"}, "'reasoning_content' may be the reasoning"),
    ("prompt_completion", PLAIN, {"input": "c"}, "'input' may be part of the question"),
    ("question_answer", {"question": "a", "answer": "B"}, {"choices": ["x", "y"]}, "'choices' may be part of the question"),
    ("question_answer", {"question": "a", "answer": "b"}, {"passage": "c"}, "did you mean 'context'"),
    ("classification", TASK, {"system": "s"}, "'system' may change what is learned"),
    ("classification", TASK, {"history": "s"}, "'history' may change what is learned"),
    ("text", {"text": "a"}, {"split": "test"}, "'split' says that the row is held out"),
]  # fmt: skip


@pytest.mark.parametrize(("format_name", "values", "column", "problem"), MEANINGFUL)
def test_columns_with_a_meaning(
    format_name: FormatName, values: dict[str, Any], column: dict[str, Any], problem: str
) -> None:
    """A column that may change what is learned is refused where its format doesn't read it; ignore_columns
    passes over it."""
    row = Row("rows.jsonl:1", values | column)
    source = {"path": "rows.jsonl", "format": format_name}
    with pytest.raises(DataError, match=problem):
        parser_of(FileSource.model_validate(source), [row]).parse(row)
    ignoring = parser_of(FileSource.model_validate(source | {"ignore_columns": list(column)}), [row])
    plain = Row("rows.jsonl:1", values)
    assert ignoring.parse(row) == parser_of(FileSource.model_validate(source), [plain]).parse(plain)


@pytest.mark.parametrize(
    "column",
    [
        {"system": ""}, {"system_prompt": None}, {"tools": []}, {"history": []}, {"images": []}, {"label": True}, {"label": 0},
        {"label": "math"}, {"weight": 1.0}, {"weight": "1"}, {"train": True}, {"split": "train"}, {"id": 3}, {"source": "web"},
        {"context": "c"}, {"choices": ["a"]}, {"reasoning": ""},
        {"image": Unreadable("binary")}, {"images": Unreadable("list<binary>")}, {"score": 0.5},
    ],
)  # fmt: skip
def test_columns_without_a_meaning(column: dict[str, Any]) -> None:
    """What holds nothing, says what is so anyway, or tells of the row is only counted; so is what is no
    text."""
    assert parsed(CHAT | column) == parsed(CHAT)


def test_ignored_keys_of_messages() -> None:
    """ignore_columns names keys of messages too, also where the messages are JSON."""
    row = {"messages": [USER, RIGHT | {"channel": "final", "loss": False}]}
    for messages in (row["messages"], json.dumps(row["messages"])):
        example = parsed({"messages": messages}, ignore_columns=["channel", "loss"])
        assert example == parsed(CHAT)


def test_keys_without_a_meaning_are_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """They are said in the audit's lines and in its JSON, with how many rows have them."""
    rows = [{"messages": [USER | {"id": "u1", "name": "Ada"}, RIGHT | {"id": "a1", "timestamp": None}]}, CHAT]
    whole = section(file(tmp_path / "rows.jsonl", rows, "messages"))
    audit = audit_of(whole, prepare(whole, tokenizer, seed=0, audit=True), tokenizer, seed=0)
    said = "  columns that format messages doesn't read: 'messages.id' (1 rows), 'messages.name' (1 rows)"
    assert said in audit_lines(audit)
    assert audit.as_dict()["sources"][0]["unread_columns"] == {"messages.id": 1, "messages.name": 1}


@pytest.mark.parametrize(
    ("role", "meant"),
    [
        ("developer", "system"), ("System", "system"), ("human", "user"), ("USER", "user"), (" prompter ", "user"),
        ("gpt", "assistant"),
        ("model", "assistant"), ("Assistant", "assistant"), ("bot", "assistant"), ("function", "tool"), ("ipython", "tool"),
        ("observation", "tool"), ("tool_response", "tool"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["messages", "sharegpt"])
def test_roles_by_their_meaning(role: str, meant: str, form: FormatName) -> None:
    """Every tool's names of the four roles are read, in any case, in both forms."""
    call = {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    before = {
        "system": [],
        "user": [],
        "assistant": [USER],
        "tool": [USER, {"role": "assistant", "content": "", **call}],
    }[meant]
    after = {"system": [USER, RIGHT], "user": [RIGHT], "assistant": [], "tool": [RIGHT]}[meant]
    turns = [*before, {"role": role, "content": "x"}, *after]
    if form == "sharegpt":
        names = {"role": "from", "content": "value"}
        turns = [{names.get(key, key): value for key, value in turn.items()} for turn in turns]
    read = parsed({"messages" if form == "messages" else "conversations": turns}, form)
    assert [message.role for message in read.messages][len(before)] == meant


def test_an_unknown_role() -> None:
    """It is refused with those that are known, and with the way to leave such rows out."""
    with pytest.raises(
        DataError, match=r"messages\[1\]\.role is 'critic'; expected one of system, .*on_bad_row: skip leaves"
    ):
        parsed({"messages": [USER, {"role": "critic", "content": "x"}, RIGHT]})


def test_calls_in_older_and_other_forms() -> None:
    """OpenAI's function_call, and turns of calls that stand together, are the calls of one turn, as
    tool_calls are."""
    call, result = {"name": "f", "arguments": '{"x": 1}'}, {"role": "function", "name": "f", "content": "2"}
    old = {"messages": [USER, {"role": "assistant", "content": None, "function_call": call}, result, RIGHT]}
    now = {
        "messages": [
            USER,
            {"role": "assistant", "tool_calls": [{"function": call}]},
            result | {"role": "tool"},
            RIGHT,
        ]
    }
    assert parsed(old) == parsed(now)
    calls = [{"role": "tool_call", "content": f'{{"name": "{name}", "arguments": {{}}}}'} for name in "fg"]
    results = [{"role": "tool_response", "content": text} for text in ("1", "2")]
    both = [{"function": {"name": name, "arguments": {}}} for name in "fg"]
    now = {"messages": [USER, {"role": "assistant", "tool_calls": both}, *results, RIGHT]}
    assert parsed({"messages": [USER, *calls, *results, RIGHT]}) == parsed(now)
    with pytest.raises(DataError, match="has tool_calls and a function_call"):
        parsed({"messages": [USER, ANSWER | {"function_call": call, "tool_calls": both}, RIGHT]})


CALL = {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    ("turn", "meant"),
    [
        ({"reasoning_content": "Hm.", "content": "Apple."}, Message("assistant", "Apple.", reasoning="Hm.")),
        ({"reasoning": "Hm.", "thinking": "Hm.", "content": "Apple."}, Message("assistant", "Apple.", reasoning="Hm.")),
        ({"reasoning_content": None, "thinking": "", "content": "Apple."}, Message("assistant", "Apple.")),
        ({"content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Apple."}]},
         Message("assistant", "Apple.", reasoning="Hm.")),
        ({"content": [{"type": "thinking", "thinking": "H"}, {"type": "thinking", "text": "m."}]},
         Message("assistant", "", reasoning="Hm.")),
        ({"content": [{"type": "text", "text": "Look: "}, {"type": "tool_call", "value": json.dumps(CALL)}]},
         Message("assistant", "Look: ", tool_calls=(ToolCall("f", {"x": 1}),))),
        ({"content": [{"type": "reasoning", "value": "Hm."}, {"type": "tool_call", "value": CALL}], "loss_weight": 0.5},
         Message("assistant", "", 0.5, (ToolCall("f", {"x": 1}),), reasoning="Hm.")),
    ],
)  # fmt: skip
def test_thoughts_and_parts(turn: dict[str, Any], meant: Message) -> None:
    """What is thought is read from a key or from a typed part, and so are calls, in both forms."""
    assert parsed({"messages": [USER, {"role": "assistant"} | turn]}).messages[1] == meant
    conversations = [
        {"from": "user", "value": USER["content"]},
        {
            "from": "gpt",
            "value": turn["content"],
            **{key: value for key, value in turn.items() if key != "content"},
        },
    ]
    assert parsed({"conversations": conversations}, "sharegpt").messages[1] == meant


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ({"reasoning_content": "a", "thinking": "b", "content": "c"},
         "its reasoning_content and thinking hold different reasoning"),
        ({"reasoning_content": "a", "content": [{"type": "reasoning", "value": "b"}, {"type": "text", "text": "c"}]},
         "its reasoning_content and content hold different reasoning"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "reasoning", "value": "b"}]},
         r"content\[1\] is of type 'reasoning' after a text; reasoning, then text, then tool_call"),
        ({"content": [{"type": "tool_call", "value": CALL}, {"type": "text", "text": "a"}]}, "'text' after a tool_call"),
        ({"content": [{"type": "tool_call", "value": '{"name": "f", "name": "g"}'}]},
         "value is not valid JSON.* appears twice"),
        ({"content": [{"type": "image_url"}]}, r"content\[0\]\.type is 'image_url'; only parts of type text, reasoning"),
        ({"reasoning_content": ["a"], "content": "c"}, "reasoning_content is a list; a string was expected"),
    ],
)  # fmt: skip
def test_thoughts_and_parts_that_are_refused(turn: dict[str, Any], problem: str) -> None:
    """Thoughts that differ, and parts in an order that no template writes, are refused by their place."""
    with pytest.raises(DataError, match=rf"messages\[1\].*{problem}"):
        parsed({"messages": [USER, {"role": "assistant"} | turn]})


def test_a_thought_in_a_mended_conversation() -> None:
    """It stays before its answer, or the turns can't be put together."""
    first = {"role": "assistant", "content": "", "reasoning_content": "Hm."}
    options = {"path": "rows.jsonl", "format": "messages"}
    parser = parser_of(FileSource.model_validate(options), [], rules=RowRules(("merge_neighbours",)))
    [(_, example)] = parser.parse(Row("rows.jsonl:1", {"messages": [USER, first, RIGHT]}))
    assert example.messages[1] == Message("assistant", "Apple.", reasoning="Hm.")  # type: ignore[union-attr]
    with pytest.raises(
        DataError, match=r"messages\[2\] can't be merged .* its reasoning would come after an answer"
    ):
        parser.parse(Row("rows.jsonl:1", {"messages": [USER, RIGHT, RIGHT | {"reasoning": "Hm."}]}))
