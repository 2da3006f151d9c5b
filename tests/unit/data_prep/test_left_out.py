"""What a row says stands in the text that is tokenised, and in the tokens: otherwise the audit says what is
lost."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data_prep import TEMPLATES, Conversation, Message, load_tokenizer, tokenize
from data_prep.chat.rendering import render
from data_prep.errors import DataError
from data_prep.messages import PlainText, ToolCall
from data_prep.preparation import prepare
from tests.unit.data_prep.rows import file, section, with_template, write

SYSTEM, ASK, SAY = (
    Message("system", "Be brief."),
    Message("user", "Who sat?"),
    Message("assistant", "The cat."),
)
PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]CONTENT{% if m.role == 'assistant' %}</s>{% endif "
    "%}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def template(content: str = "{{ m.content }}") -> str:
    return PLAIN.replace("CONTENT", content)


def findings(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    tokenize(
        [("row", conversation)],
        tokenizer,
        on_finding=lambda finding, place, message: found.append((finding, message)),
    )
    return found


@pytest.mark.parametrize(
    ("content", "role"),
    [
        ("{% if m.role != 'system' %}{{ m.content }}{% endif %}", "system"),
        ("{% if m.role != 'user' %}{{ m.content }}{% endif %}", "user"),
        ("{{ m.content[:5] }}", "system"),
        ("{{ m.content.split(' ')[0] }}", "system"),
        ("{{ m.content if loop.last else '' }}", "system"),
        ("{{ m.content | upper }}", "system"),
        ("{% if m.role == 'user' %}{{ m.content[2:] }}{% else %}{{ m.content }}{% endif %}", "user"),
    ],
)
def test_a_template_that_leaves_out_a_turn_or_a_part_of_it(
    content: str, role: str, llama_folder: Path, tmp_path: Path
) -> None:
    """The first message that isn't wholly in the text is named by its place and role."""
    tokenizer = with_template(llama_folder, template(content), tmp_path)
    index = ["system", "user", "assistant"].index(role)
    finding, message = findings(Conversation((SYSTEM, ASK, SAY)), tokenizer)[0]
    assert finding == "left_out_text"
    assert f"leaves out the text of message {index} ({role})" in message


def test_a_text_that_another_turn_happens_to_hold_does_not_stand_in_for_one_that_is_left_out(
    llama_folder: Path, tmp_path: Path
) -> None:
    """A system message that is dropped is found although the question repeats it."""
    tokenizer = with_template(
        llama_folder, template("{% if m.role != 'system' %}{{ m.content }}{% endif %}"), tmp_path
    )
    talk = Conversation((Message("system", "sat"), ASK, SAY))
    assert [finding for finding, _ in findings(talk, tokenizer)] == ["left_out_text"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_shipped_templates_write_every_turn(name: str, llama_folder: Path) -> None:
    """System messages, several turns and blanks around contents are all there."""
    talk = (SYSTEM, ASK, SAY, Message("user", "  And then? \n"), Message("assistant", " It slept.\n"))
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    assert "left_out_text" not in [finding for finding, _ in findings(Conversation(talk), tokenizer)]


def test_the_result_of_a_tool_may_be_written_as_json(llama_folder: Path, tmp_path: Path) -> None:
    """A result that the template writes as a string of JSON is all there; one whose end is cut is not."""
    call = Message("assistant", "", tool_calls=(ToolCall("weather", {"town": "Kiel"}, "c1"),))
    talk = Conversation((ASK, call, Message("tool", 'Rain, "3" °C\n', tool_call_id="c1"), SAY))
    calls = (
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% elif m.role == 'tool' %}TOOL{% else %}{{ "
        "m.content }}{% endif %}"
    )
    whole = with_template(llama_folder, template(calls.replace("TOOL", "{{ m.content | tojson }}")), tmp_path)
    assert findings(talk, whole) == []
    cut = with_template(llama_folder, template(calls.replace("TOOL", "{{ m.content[:6] }}")), tmp_path)
    [(finding, message)] = findings(talk, cut)
    assert (finding, "message 2 (tool)" in message) == ("left_out_text", True)


PARTS = "{% for p in m.content %}{{ p['text'] }}{% endfor %}"
EITHER = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% "
    "endif %}"
)
MIXED = "{% if m.role == 'user' %}" + PARTS + "{% else %}{{ m.content }}{% endif %}"


@pytest.mark.parametrize("content", [PARTS, EITHER, MIXED, "{{ m.content[0].text }}"])
def test_contents_go_in_the_form_that_the_template_reads(
    content: str, llama_folder: Path, tmp_path: Path
) -> None:
    """As text, or as parts where it reads parts alone: what is written is what a template that takes text
    writes, and what transformers writes of that form.
    """
    tokenizer = with_template(llama_folder, template(content), tmp_path)
    talk = [SYSTEM, ASK, SAY]
    written = "<s>[system]Be brief.[user]Who sat?[assistant]The cat.</s>"
    assert render(talk, tokenizer) == written
    assert findings(Conversation(tuple(talk)), tokenizer) == []
    as_parts = (
        {"system", "user", "assistant"}
        if content in (PARTS, "{{ m.content[0].text }}")
        else {"user"} & set(MIXED.split("'"))
    )
    turns = [
        {
            "role": m.role,
            "content": [{"type": "text", "text": m.content}]
            if m.role in as_parts and content != EITHER
            else m.content,
        }
        for m in talk
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == written


def test_what_is_left_out_is_refused_or_allowed(llama_folder: Path, tmp_path: Path) -> None:
    """An audit counts it, training refuses it, and data.allow_findings takes it."""
    tokenizer = with_template(
        llama_folder, template("{% if m.role != 'system' %}{{ m.content }}{% endif %}"), tmp_path
    )
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in (SYSTEM, ASK, SAY)]}]
    write(tmp_path / "rows.jsonl", rows)
    data = section(file(tmp_path / "rows.jsonl", rows, "messages"))
    assert prepare(data, tokenizer, seed=0, audit=True).report.findings() == {"left_out_text": 1}
    with pytest.raises(DataError, match="put a system message's text into the first question"):
        prepare(data, tokenizer, seed=0)
    allowed = data.model_copy(update={"allow_findings": ("left_out_text",)})
    assert len(prepare(allowed, tokenizer, seed=0).train) == 1


def tokenizer_of(kind: str, folder: Path) -> PreTrainedTokenizerFast:
    """Tokenizers that don't know every character: with an unknown token, or leaving out what they don't
    know."""
    if kind == "byte-level":  # which has seen no other bytes, and has no token for the rest
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        trainer: object = trainers.BpeTrainer(special_tokens=["<s>", "</s>"])
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<s>", "</s>", "[UNK]"], unk_token="[UNK]"
        )
    elif kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=["<s>", "</s>", "[UNK]"])
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>", "[UNK]"])
    tokenizer.train_from_iterator(["the cat sat on a mat, who ran?"] * 9, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    return load_tokenizer(folder)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "words", "byte-level"])
def test_text_that_the_tokenizer_does_not_know_is_found(kind: str, tmp_path: Path) -> None:
    """A character that becomes the unknown token, or vanishes, fails the audit; text of known characters
    doesn't."""
    tokenizer = tokenizer_of(kind, tmp_path)
    rows = [(text, PlainText("", text)) for text in ("the cat", "the 猫", "猫")]
    found: list[tuple[str, str]] = []
    tokenize(rows, tokenizer, on_finding=lambda finding, place, message: found.append((finding, place)))
    assert found == [("unknown_token", "the 猫"), ("unknown_token", "猫")]


def test_a_tokenizer_that_falls_back_to_bytes_loses_nothing(tiny_base: Path) -> None:
    """Nothing is found where every byte has a token."""
    tokenize([("row", PlainText("", "猫 🙂 é \ufffd"))], load_tokenizer(tiny_base))


def test_the_unknown_token_in_words_is_no_lost_text(tmp_path: Path) -> None:
    """A row that holds the unknown token's own text is not one that the tokenizer can't write."""
    tokenize([("row", PlainText("", "the [UNK] cat"))], tokenizer_of("bpe", tmp_path))


@pytest.mark.parametrize("asked", [True, False, None])
@pytest.mark.parametrize("added", [True, False])
def test_a_bos_is_added_as_the_tokenizers_configuration_says(
    asked: bool | None, added: bool, llama_folder: Path, tmp_path: Path
) -> None:
    """add_bos_token counts, where it is written, before what tokenizer.json adds; and what is saved says the
    same in both."""
    load_tokenizer(llama_folder).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    assert values["post_processor"] is not None  # which adds it
    if not added:
        values["post_processor"] = None
        (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("add_bos_token", None)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | ({} if asked is None else {"add_bos_token": asked}))
    )
    tokenizer = load_tokenizer(tmp_path)
    [document] = tokenize([("row", PlainText("", "lamp"))], tokenizer)
    expected = added if asked is None else asked
    assert (document.token_ids[0] == tokenizer.bos_token_id) == expected
    tokenizer.save_pretrained(tmp_path / "saved")
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert (again("lamp")["input_ids"][0] == tokenizer.bos_token_id) == expected


NAMED = {
    "default": template(),
    "tool_use": "{{ tools | tojson }}"
    + template("{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"),
}


def named(folder: Path, templates: dict[str, str], llama_folder: Path, *, files: bool) -> Path:
    """A tokenizer with templates by name, in its configuration or in files, as transformers saves them."""
    tokenizer = load_tokenizer(llama_folder)
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(folder)
    if not files:
        for path in [folder / "chat_template.jinja", *(folder / "additional_chat_templates").glob("*")]:
            path.unlink(missing_ok=True)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("files", [False, True])
def test_named_templates_are_chosen_as_transformers_chooses(
    files: bool, llama_folder: Path, tmp_path: Path
) -> None:
    """The default for conversations without tools, tool_use for those with some, or the one that the recipe
    names."""
    tokenizer = load_tokenizer(named(tmp_path, NAMED, llama_folder, files=files))
    tools = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
    turns = [{"role": m.role, "content": m.content} for m in (ASK, SAY)]
    assert render([ASK, SAY], tokenizer) == tokenizer.apply_chat_template(turns, tokenize=False)
    assert render([ASK, SAY], tokenizer, tools=tools) == tokenizer.apply_chat_template(
        turns, tools=list(tools), tokenize=False
    )
    chosen = load_tokenizer(tmp_path, chat_template="tool_use")
    assert (
        render([ASK, SAY], chosen) == "<s>null<s>[user]Who sat?[assistant]The cat.</s>"
    )  # as it writes it without tools
    with pytest.raises(DataError, match="did you mean tool_use"):
        load_tokenizer(tmp_path, chat_template="tools_use")


def test_named_templates_without_a_default_have_to_be_chosen(llama_folder: Path, tmp_path: Path) -> None:
    """Conversations are refused with the names, plain texts are not concerned."""
    folder = named(tmp_path, {"chat": NAMED["default"], "rag": NAMED["tool_use"]}, llama_folder, files=False)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(DataError, match="chat templates chat and rag, but none of them is the default"):
        tokenize([("row", Conversation((ASK, SAY)))], tokenizer)
    tokenize([("row", PlainText("Who sat?", " The cat."))], tokenizer)
    assert (
        render([ASK, SAY], load_tokenizer(folder, chat_template="chat"))
        == "<s>[user]Who sat?[assistant]The cat.</s>"
    )


def test_a_row_that_the_template_refuses_can_be_skipped(llama_folder: Path, tmp_path: Path) -> None:
    """It ends the preparation with its place, or is skipped and counted; the rows around it keep their places
    and tokens."""
    refuses = template(
        "{% if 'sat' in m.content %}{{ raise_exception('nobody sits') }}{% endif %}{{ m.content }}"
    )
    tokenizer = with_template(llama_folder, refuses, tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": "Ada."}]}
        for ask in ("Who sat?", "Who ran?", "Who sat?", "Who slept?")
    ]
    write(tmp_path / "rows.jsonl", rows)
    source = file(tmp_path / "rows.jsonl", rows, "messages")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*nobody sits"):
        prepare(section(source), tokenizer, seed=0)
    data = section(source, on_bad_row="skip")
    made = prepare(data, tokenizer, seed=0)
    assert [document.place for document in made.train] == ["rows.jsonl:2", "rows.jsonl:4"]
    assert made.report.sources[0].dropped["bad_row"].count == 2
    assert [tokenizer.decode(document.token_ids) for document in made.train] == [
        f"<s>[user]{ask}[assistant]Ada.</s>" for ask in ("Who ran?", "Who slept?")
    ]
