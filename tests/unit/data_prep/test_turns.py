"""Where answers stand: the two ways to find them agree, and masks hold answers and nothing else."""

import json
from collections.abc import Callable
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep import TEMPLATES, Conversation, Document, Message, tokenize
from data_prep.chat.rendering import MARKER
from data_prep.chat.tokenization import Tokenization
from data_prep.chat.turns import Found, Skeleton, TextSpan, TurnFinder
from data_prep.config import Supervise
from data_prep.epoch.packing import OVERLAP_TOKENS, pack_documents, pieces_of
from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.models import trained_bpe
from tests.unit.data_prep.rows import allowing

END, HEADER = "<|im_end|>", "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
TURN = "<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>{{ '\n' }}"
EACH = "{% for m in messages %}" + TURN + "{% endfor %}" + HEADER


def changed(old: str, new: str) -> str:
    """A ChatML template with a change."""
    assert old in EACH
    return EACH.replace(old, new)


OWN = {
    "strips on the left": changed("m.content", "m.content.lstrip()"),
    "strips on the right": changed("m.content", "m.content.rstrip()"),
    "strips answers": changed("m.content", "(m.content.strip() if m.role == 'assistant' else m.content)"),
    "marks foo": changed(
        "{{ m.role }}", "{{ m.role }}{% if m.role != 'assistant' and 'foo' in m.content %} (it says foo){% endif %}"
    ),
    "numbers turns": changed("{{ m.role }}", "{{ loop.index }} {{ m.role }}"),
    "counts turns": changed("{{ m.role }}", "{{ loop.index }} of {{ messages | length }} {{ m.role }}"),
    "system behind": (
        "{% for m in messages if m.role != 'system' %}" + TURN
        + "{% if loop.first and messages[0].role == 'system' %}(Rule: {{ messages[0].content }}){{ '\n' }}{% endif %}"
        + "{% endfor %}" + HEADER
    ),
    "system last": (
        "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + HEADER
        + "{% if messages[0].role == 'system' %}(Rule: {{ messages[0].content }}){% endif %}"
    ),
    "asks twice": changed(
        "{{ m.content }}", "{{ m.content }}{% if m.role == 'user' %}{{ '\n' }}Again: {{ m.content }}{% endif %}"
    ),
    "answers twice": changed(
        "{{ m.content }}", "{{ m.content }}{% if m.role == 'assistant' %}{{ '\n' }}{{ m.content }}{% endif %}"
    ),
    "tells the last": changed("{{ m.role }}", "{{ m.role }}{% if loop.last and m.role == 'assistant' %} at last{% endif %}"),
    "no header": "{% for m in messages %}" + TURN + "{% endfor %}",
    "vicuna": (
        "{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: {{ m.content }}</s>{% else %}"
        "USER: {{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "blank before": "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}  # fmt: skip
"""Templates that write turns in ways of their own."""

ANSWER_MARKED = changed("{{ m.role }}", "{{ m.role }}{% if 'foo' in m.content %} (it says foo){% endif %}")
LAST_THOUGHT = changed("m.content", "(m.content if loop.last else m.content.split('</think>')[-1])")

WRITTEN: dict[str, Callable[[str], str]] = dict.fromkeys(OWN, lambda answer: answer + END) | {
    "alpaca": lambda answer: answer + "</s>",
    "chatml": lambda answer: answer + END,
    "llama2": lambda answer: f" {answer.strip()} </s>",
    "llama3": lambda answer: answer.strip() + "<|eot_id|>",
    "mistral": lambda answer: f" {answer}</s>",
    "zephyr": lambda answer: answer + "</s>",
    "strips on the left": lambda answer: answer.lstrip() + END,
    "strips on the right": lambda answer: answer.rstrip() + END,
    "strips answers": lambda answer: answer.strip() + END,
    "answers twice": lambda answer: f"{answer}\n{answer}{END}",
    "vicuna": lambda answer: f" {answer}</s>",
}
"""An answer and its end of turn, as each template writes them."""

BLANKS = ["", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u2009", "\xa0", "\u3000", "\u2028"]
ROLES = [
    "<|im_start|>assistant\n", "<|im_end|>\n", "<|im_start|>user\n", "[/INST]", " [/INST] ", "[INST] ",
    "<<SYS>>\n", "### Response:\n", "### Instruction:\n", "<|assistant|>\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", "</s>", "<s>", "assistant: ",
    "ASSISTANT:", "1 of 2 assistant\n", "(Rule: ", "Again: ",
]  # fmt: skip
WORDS = [
    "Ada",
    "foo",
    "lamp",
    "é",
    "🙂",
    "日本",
    "1",
    "{{ messages }}",
    "{% endfor %}",
    "TURN-1-5e9a",
    "</think>",
]
PIECE = st.one_of(
    st.sampled_from(BLANKS),
    st.sampled_from(ROLES),
    st.sampled_from(WORDS),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
CONTENT = st.lists(PIECE, max_size=4).map("".join)
WEIGHT = st.sampled_from([None, None, 0.0, 1.0, 0.5, 3.0])


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Roles in order; a question may hold the answer's own text, and answers may be the same."""
    messages = [Message("system", draw(CONTENT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        answer = draw(CONTENT)
        question = (
            draw(st.sampled_from(["{0}", "{1}", "{0}{1}", "{1}{0}"]))
            .replace("{1}", answer)
            .replace("{0}", draw(CONTENT))
        )
        messages += [Message("user", question), Message("assistant", answer, draw(WEIGHT))]
    starts = [0, *(index for index, message in enumerate(messages) if message.role == "assistant")]
    return Conversation(tuple(messages), completion_start=draw(st.sampled_from(starts)))


class GeneralFinder(TurnFinder):
    """Finds every answer by rendering the conversation up to it."""

    def _skeleton(self, example: Conversation) -> Skeleton | None:
        return None


Load = Callable[[str, str], PreTrainedTokenizerFast]


@pytest.fixture(scope="module")
def blanks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that joins blanks into tokens, and whose offsets hold the blank before a word."""
    texts = ["a\n\nb   c \n d\t\t", " Ada: lamp. 日本 assistant\n\n\nuser    \n"] * 20
    tokenizer = trained_bpe(texts, 600)
    folder = tmp_path_factory.mktemp("blanks")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def load(llama_folder: Path, blanks_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """load(template, tokenizer): a shipped template, one of OWN, or a template's text; "trims" or "joins"
    blanks."""
    templates = tmp_path_factory.mktemp("templates")

    @cache
    def loaded(template: str, tokenizer: str) -> PreTrainedTokenizerFast:
        folder = {"trims": llama_folder, "joins": blanks_folder}[tokenizer]
        if template in TEMPLATES:
            return load_tokenizer(folder, chat_template=template)
        path = templates / f"{len(list(templates.iterdir()))}.jinja"
        path.write_text(OWN.get(template, template))
        return load_tokenizer(folder, chat_template=str(path))

    return loaded


def found(finder: TurnFinder, example: Conversation) -> Found | str:
    try:
        return finder.find(example)
    except DataError as error:
        return str(error)


def same_but_for_blanks(text: str, one: TextSpan, other: TextSpan) -> bool:
    first, last = sorted([one.content_end, other.content_end])
    return (one.start, one.end, one.weight) == (other.start, other.end, other.weight) and not text[
        first:last
    ].strip()


@pytest.mark.parametrize("template", [*TEMPLATES, *OWN, ANSWER_MARKED, LAST_THOUGHT])
def test_the_short_way_finds_what_the_general_way_finds(template: str, load: Load) -> None:
    """By its skeleton a conversation has the text, spans and weights, or the error, that rendering up to each
    answer gives; where an answer's own text ends may differ by blanks.
    """
    tokenizer = load(template, "trims")
    pairs = {
        mode: (TurnFinder(tokenizer, mode), GeneralFinder(tokenizer, mode)) for mode in get_args(Supervise)
    }

    @settings(deadline=None, max_examples=40)
    @given(example=conversations(), mode=st.sampled_from(get_args(Supervise)))
    def check(example: Conversation, mode: Supervise) -> None:
        short, general = (found(finder, example) for finder in pairs[mode])
        if isinstance(short, str) or isinstance(general, str):
            assert short == general
            return
        assert (short.text, short.left_out) == (general.text, general.left_out)
        assert short.asks == general.asks
        assert len(short.spans) == len(general.spans)
        assert all(
            same_but_for_blanks(short.text, *spans) for spans in zip(short.spans, general.spans, strict=True)
        )

    check()


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_shipped_templates_have_skeletons(template: str, system: bool, load: Load) -> None:
    """The short way is taken with each shipped template, but for LLaMA-2's with a system message, which it
    strips at its end by the question alone.
    """
    turns = (
        Message("user", " What?\n"),
        Message("assistant", " That. "),
        Message("user", "foo"),
        Message("assistant", ""),
    )
    example = Conversation((Message("system", " Be brief. "), *turns) if system else turns)
    finder = TurnFinder(load(template, "trims"), "assistant")
    text = finder.find(example).text
    skeleton = finder._skeleton(example)
    fits = skeleton is not None and skeleton.fit(example.messages, text) is not None
    assert fits == ((template, system) != ("llama2", True))


def runs(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[tuple[float, str]]:
    """The document's tokens in runs of equal weight, decoded, each with its weight."""
    pairs = zip(document.weights, document.token_ids, strict=True)
    grouped = [
        (weight, [token for _, token in group]) for weight, group in groupby(pairs, key=lambda pair: pair[0])
    ]
    return [(weight, tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for weight, ids in grouped]


def tokenization(tokenizer: PreTrainedTokenizerFast, mode: Supervise) -> Tokenization:
    """Takes rows whose text begins with a second BOS, or with a prompt that grows together with its
    answer."""
    return Tokenization(tokenizer, mode, allowing)


def learned(example: Conversation, mode: Supervise) -> list[Message]:
    """The answers that a mode supervises, as the recipe's documentation has it."""
    messages, start = example.messages, example.completion_start
    asked = max(index for index, message in enumerate(messages) if message.role == "user")
    first = asked if mode == "completion" and start == 0 else start
    answers = [message for message in messages[first:] if message.role == "assistant"]
    return [message for message in (answers[-1:] if mode == "last" else answers) if message.weight != 0]


@pytest.mark.parametrize("tokenizer_name", ["trims", "joins"])
@pytest.mark.parametrize("template", WRITTEN)
def test_masks_never_leave_their_turns(template: str, tokenizer_name: str, load: Load) -> None:
    """What is supervised is, run by run, the answers that the mode means and their ends of turn, each by its
    weight, but for blanks that it begins with.
    """
    tokenizer, written = load(template, tokenizer_name), WRITTEN[template]
    ways = {mode: tokenization(tokenizer, mode) for mode in ("assistant", "last", "completion")}

    @settings(deadline=None, max_examples=25)
    @given(example=conversations(), mode=st.sampled_from(list(ways)))
    def check(example: Conversation, mode: Supervise) -> None:
        [(document, _)] = ways[mode].run([("row", example)])
        got = [(weight, text.lstrip()) for weight, text in runs(document, tokenizer) if weight]
        answers = [
            (1.0 if m.weight is None else m.weight, written(m.content).lstrip())
            for m in learned(example, mode)
        ]
        assert got == answers
        assert_in_order(document)

    check()


def assert_in_order(document: Document) -> None:
    """Spans are in order, without overlap, of some tokens and some weight, and none holds the first token."""
    assert all(0 < first < end <= len(document.token_ids) and weight for first, end, weight in document.spans)
    assert all(before[1] <= after[0] for before, after in pairwise(document.spans))


@pytest.mark.parametrize("tokenizer_name", ["trims", "joins"])
@pytest.mark.parametrize("template", [name for name in WRITTEN if name != "blank before"])
def test_everything_is_supervised_but_answers_by_their_weight(
    template: str, tokenizer_name: str, load: Load
) -> None:
    """In mode all every token but the first counts once, and answers that have a weight count by it, ends of
    turn included."""
    tokenizer, written = load(template, tokenizer_name), WRITTEN[template]
    way = tokenization(tokenizer, "all")

    @settings(deadline=None, max_examples=15)
    @given(example=conversations())
    def check(example: Conversation) -> None:
        [(document, _)] = way.run([("row", example)])
        assert document.weights[0] == 0
        rest = Document(document.token_ids[1:], tuple((a - 1, b - 1, w) for a, b, w in document.spans), "")
        got = [(weight, text.lstrip()) for weight, text in runs(rest, tokenizer) if weight != 1]
        weighted = [message for message in example.messages if message.weight not in (None, 1)]
        assert got == [(message.weight, written(message.content).lstrip()) for message in weighted]
        assert_in_order(document)

    check()


@pytest.mark.parametrize("weight", [0.0, 2.0])
@pytest.mark.parametrize("tokenizer_name", ["trims", "joins"])
def test_an_answer_behind_a_blank_counts_by_its_weight_alone(
    weight: float, tokenizer_name: str, load: Load
) -> None:
    """Where a header ends in a blank that belongs to the answer's first token, an answer of weight 0 is no
    part of mode all, and one of weight 2 is counted once.
    """
    tokenizer = load("blank before", tokenizer_name)
    turns = (
        Message("user", "q"),
        Message("assistant", "Ada", weight),
        Message("user", "q"),
        Message("assistant", "lamp"),
    )
    [document] = tokenize([("row", Conversation(turns))], tokenizer, "all", allowing)
    assert [text.strip() for value, text in runs(document, tokenizer)[1:] if value == weight] == [f"Ada{END}"]
    assert document.supervised_tokens == sum(document.supervised)
    assert_in_order(document)


@pytest.mark.parametrize("template", WRITTEN)
def test_each_mode_with_each_template(template: str, load: Load) -> None:
    """The four modes mean all answers, the last, those after the last question, and all of the text; a row's
    completion begins where the row says.
    """
    tokenizer, written = load(template, "joins"), WRITTEN[template]
    talk = (
        Message("system", "foo"), Message("user", "One?"), Message("assistant", "1."),
        Message("user", "Two?"), Message("assistant", "2."), Message("user", "3.?"),
        Message("assistant", "3."),
    )  # fmt: skip
    for start, mode, expected in [
        (0, "assistant", ["1.", "2.", "3."]), (0, "last", ["3."]), (0, "completion", ["3."]),
        (3, "assistant", ["2.", "3."]), (3, "last", ["3."]), (3, "completion", ["2.", "3."]),
    ]:  # fmt: skip
        [document] = tokenize(
            [("row", Conversation(talk, completion_start=start))], tokenizer, mode, allowing
        )
        assert [text.strip() for weight, text in runs(document, tokenizer) if weight] == [
            written(answer).strip() for answer in expected
        ]
    [document] = tokenize([("row", Conversation(talk, completion_start=3))], tokenizer, "all", allowing)
    assert document.weights == [0.0] + [1.0] * (len(document.token_ids) - 1)


@pytest.mark.parametrize("tokenizer_name", ["trims", "joins"])
def test_an_end_of_turn_that_takes_blanks_with_it(tokenizer_name: str, load: Load, tmp_path: Path) -> None:
    """An end token that the tokenizer strips blanks before (lstrip) ends the turn of an answer that ends in
    blanks as well."""
    load("chatml", tokenizer_name).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["lstrip"] = token["content"] == END
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    for answer in ("ho", "ho ", "ho\n\n"):
        [document] = tokenize(
            [("row", Conversation((Message("user", "hi"), Message("assistant", answer))))], tokenizer
        )
        assert [text for weight, text in runs(document, tokenizer) if weight] == [f"ho{END}"]


def test_an_answer_that_the_template_rewrites_is_refused(load: Load) -> None:
    """Where a header depends on the answer, the row is refused by name, with what can be done."""
    turns = (
        Message("user", "q"),
        Message("assistant", "foo"),
        Message("user", "q"),
        Message("assistant", "a"),
    )
    with pytest.raises(DataError, match=r"row 3: .* in a way that can't be located .*data\.supervise: last"):
        tokenize([("row 3", Conversation(turns))], load(ANSWER_MARKED, "trims"))


@pytest.mark.torch
@settings(deadline=None, max_examples=60)
@given(
    examples=st.lists(conversations(), min_size=1, max_size=6),
    spare=st.integers(0, 200),
    split=st.booleans(),
    mode=st.sampled_from(["assistant", "all"]),
    template=st.sampled_from(["chatml", "llama2"]),
)
def test_a_pack_holds_the_tokens_of_its_documents(
    examples: list[Conversation], spare: int, split: bool, mode: Supervise, template: str, load: Load
) -> None:
    """As tensors, a pack is its documents' tokens end to end, with positions of their own, and each
    position's label is the document's next token where that is supervised, by its weight; the last position
    of a document has none.
    """
    from finetune.models.batch import packed_batch
    from finetune.models.loss import IGNORE_INDEX

    rows = [("row", example) for example in examples]
    documents = [document for document, _ in tokenization(load(template, "joins"), mode).run(rows)]
    lengths = np.array([len(document.token_ids) for document in documents])
    capacity = 8 + spare if split else int(lengths.max()) + spare
    seen: list[int] = []
    for pieces in pack_documents(
        lengths, np.arange(len(documents)), 0, capacity_tokens=capacity, split=split, overlap=OVERLAP_TOKENS
    ):
        members = pieces_of(documents, pieces, OVERLAP_TOKENS)
        made = packed_batch(members)
        assert made.pop("documents") == [len(member.token_ids) for member in members]
        batch = {name: tensor[0].tolist() for name, tensor in made.items()}
        weights: list[float] = batch.get("shift_weights") or [
            float(label != IGNORE_INDEX) for label in batch["shift_labels"]
        ]
        position = 0
        for (index, start, stop), member in zip(pieces, members, strict=True):
            here = slice(position, position + stop - start)
            assert batch["input_ids"][here] == documents[index].token_ids[start:stop]
            assert batch["position_ids"][here] == list(range(stop - start))
            expected: list[Any] = [*documents[index].weights[start + 1 : stop], 0.0]
            assert weights[here] == expected
            labels = [
                token if weight else IGNORE_INDEX
                for token, weight in zip([*member.token_ids[1:], 0], expected, strict=True)
            ]
            assert batch["shift_labels"][here] == labels
            seen += [index] * (stop - start - member.repeated)
            position += stop - start
        assert position == len(batch["input_ids"]) <= capacity
    assert np.bincount(seen).tolist() == lengths.tolist()


def test_an_end_that_only_the_last_turn_has(load: Load) -> None:
    """Where a template ends the last turn alone, an earlier answer isn't learned with the next turn's first
    token as its end: the row is refused.
    """
    template = changed("<|im_end|>", "{% if loop.last %}<|im_end|>{% endif %}")
    turns = (Message("user", "q"), Message("assistant", "Ada")) * 2
    with pytest.raises(DataError, match="would not learn to stop"):
        tokenize([("row", Conversation(turns))], load(template, "trims"))


@pytest.mark.parametrize("template", WRITTEN)
def test_the_markers_of_the_search_are_texts_like_any_other(template: str, load: Load) -> None:
    """A row that holds what the search puts in the place of answers and turns gets its answers as masks, and
    no more."""
    tokenizer, written = load(template, "trims"), WRITTEN[template]
    texts = [MARKER, "TURN-0-5e9a", "\u2009TURN-2-5e9a\u2009"]
    turns = [Message("system", MARKER)]
    for text in texts:
        turns += [Message("user", f"What is {text}?"), Message("assistant", f"It is {text}.")]
    [document] = tokenize([("row", Conversation(tuple(turns)))], tokenizer, "assistant", allowing)
    got = [text.lstrip() for weight, text in runs(document, tokenizer) if weight]
    assert got == [written(f"It is {text}.").lstrip() for text in texts]
