"""bits_per_byte divides by the bytes of the text that was scored, whatever the tokenizer and wherever
documents are cut."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from data_prep import DataSection
from data_prep.preparation import PreparedData, prepare
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.cli.evaluate import evaluate
from finetune.evaluation.text_bytes import supervised_bytes
from tests.unit.evaluation.kinds import KINDS, save_kind

TEXTS = [
    "แมวกำลังนอนหลับอยู่บนเสื่อสีแดงใกล้หน้าต่าง",
    "A kite 🪁 flew 👩‍🚀 over the hill, and 😀😀😀 laughed.",
    "The cat sat on the mat, and the cat sat on the mat again.",
    "Größe, naïveté, \uff26\uff55\uff4c\uff4c width ﬁne; кот спит, 猫在睡觉",
    " begins and ends with blanks ",
    "two\n\nlines\tand a tab",
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(kind: str, tmp_path: Path) -> PreTrainedTokenizerFast:
    save_kind(kind, tmp_path, TEXTS[1:3])  # the other texts have characters that it doesn't know
    return load_tokenizer(tmp_path)


def prepared(
    tokenizer: PreTrainedTokenizerFast, folder: Path, rows: list[dict], **options: object
) -> tuple[PreparedData, list]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(path), "format": "text" if "text" in rows[0] else "prompt_completion"}
    section = DataSection.model_validate(
        {"train": [source], "evaluation": {"sources": [source]}, "clean": {"leakage": "keep"}}
        | {
            "allow_findings": ["leakage", "unknown_token", "unsupervised_end_of_turn"],
            "max_length_tokens": 400,
        }
        | options
    )
    data = prepare(section, tokenizer, seed=0)
    return data, supervised_bytes(data.evaluation, data.evaluation_rows, section, tokenizer)


def test_a_whole_text_counts_its_bytes(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Each byte of a text once: characters in several tokens, unknown ones, and ones that the tokenizer
    changes included."""
    _, found = prepared(tokenizer, tmp_path, [{"text": text} for text in TEXTS])
    assert found == [len(text.encode()) for text in TEXTS]


def test_only_what_is_learned_counts(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Of a prompt and its completion the completion, with the blank before it, whichever of the two it is
    written in."""
    rows = [{"prompt": "Say it: ", "completion": "猫 sat"}, {"prompt": "Say it:", "completion": " 👩‍🚀 แมว"}]
    _, found = prepared(tokenizer, tmp_path, rows)
    assert found == [len(" 猫 sat".encode()), len(" 👩‍🚀 แมว".encode())]


@pytest.mark.parametrize("over_length", ["split", "truncate_end", "truncate_start"])
@pytest.mark.parametrize("most", [8, 13, 31])
def test_a_cut_document_counts_its_own_bytes(
    kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, over_length: str, most: int
) -> None:
    """The bytes of the tokens that are scored, by what each is written as in the vocabulary; also of half a
    character."""
    if kind in ("unigram", "normalising"):
        texts = TEXTS[1:3]  # nothing unknown, and nothing that changes: a token's letters are the text's
        texts = [text.lower().replace("👩‍🚀", "").replace("🪁", "") for text in texts]
    else:
        texts = TEXTS[:4]
    options = {"max_length_tokens": most, "over_length": over_length}
    data, found = prepared(tokenizer, tmp_path, [{"text": text} for text in texts], **options)
    assert len(found) == len(data.evaluation) >= len(texts)
    for document, size in zip(data.evaluation, found, strict=True):
        pieces = tokenizer.convert_ids_to_tokens(document.token_ids)
        scored = [piece for piece, supervised in zip(pieces, document.supervised, strict=True) if supervised]
        own = sum(written_bytes(piece, kind) for piece in scored)
        # A blank before the text, which the tokenizer put there, is scored where it begins the document's
        # first word.
        place, _, part = document.place.partition(" part ")
        text = texts[int(place.rpartition(":")[2]) - 1]
        whole = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 2 <= most
        put = kind != "byte_level" and part in ("", "1") and (whole or over_length != "truncate_start")
        assert size == own - put, (document.place, pieces)


def written_bytes(piece: str, kind: str) -> int:
    """The bytes of a token by its text in the vocabulary."""
    if piece in ("<unk>", "<s>", "</s>"):
        return 0
    if kind in ("byte_level", "prefixing"):
        return len(piece)
    if piece.startswith("<0x"):
        return 1
    return len(piece.replace("▁", " ").encode())


def test_the_metric_is_that_of_plain_transformers(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Split documents: nats of the scored tokens over ln 2, over their bytes; a message's weight counts for
    both."""
    rows = [{"text": text} for text in TEXTS[:3]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"{{path: {tmp_path / 'rows.jsonl'}, format: text}}"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{base: {tiny_base}}}\n"
        f"data: {{train: [{source}], evaluation: {{sources: [{source}]}}, clean: {{leakage: keep}}, "
        "allow_findings: [leakage],"
        " max_length_tokens: 19, over_length: split}\nevaluate: {metrics: [bits_per_byte, loss]}\ntrain: "
        "{precision: fp32}\n"
    )
    evaluate(str(tiny_base), str(recipe), as_json=True)
    found = json.loads(capsys.readouterr().out)["metrics"]["bits_per_byte"]["value"]

    model, tokenizer = (
        LlamaForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval(),
        load_tokenizer(tiny_base),
    )
    nats, sizes = 0.0, 0
    for row in rows:
        ids = [*tokenizer(row["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for first in range(0, len(ids) - 1, 18):
            part = ids[first : first + 19]
            with torch.no_grad():
                likely = model(torch.tensor([part])).logits[0].double().log_softmax(-1)
            # A part begins with the last token of the one before, so that only the first of all follows from
            # nothing.
            nats -= sum(float(likely[place - 1, part[place]]) for place in range(1, len(part)))
            sizes += sum(
                len(tokenizer.convert_ids_to_tokens(token))
                for token in part[1:]
                if token != tokenizer.eos_token_id
            )
    assert found == pytest.approx(nats / math.log(2) / sizes, rel=1e-5)


def test_a_weight_counts_for_bytes_as_for_the_loss(tiny_base: Path, tmp_path: Path) -> None:
    """Of an answer with weight 0.5 half the bytes count, as half the nats do; special tokens of the template
    have none."""
    tokenizer = load_tokenizer(tiny_base)
    turns = [
        ("user", "Hi", None),
        ("assistant", "แมว", 0.5),
        ("user", "And?", None),
        ("assistant", "cat", None),
    ]
    messages = [
        {"role": role, "content": text} | ({} if weight is None else {"weight": weight})
        for role, text, weight in turns
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    source = {"path": str(path), "format": "messages"}
    section = DataSection.model_validate(
        {
            "train": [source],
            "evaluation": {"sources": [source]},
            "clean": {"leakage": "keep"},
            "allow_findings": ["leakage"],
        }
        | {"max_length_tokens": 200}
    )
    data = prepare(section, tokenizer, seed=0)
    assert supervised_bytes(data.evaluation, data.evaluation_rows, section, tokenizer) == [0.5 * 9 + 3]


@pytest.mark.parametrize("preparation", [2, 3])
def test_split_rows_count_the_bytes_of_their_own_labels(
    tiny_base: Path, tmp_path: Path, preparation: int
) -> None:
    """By preparation 2 parts share no token, and the bytes are those of the tokens that have a label then."""
    tokenizer = load_tokenizer(tiny_base, preparation=preparation)
    rows = [{"text": text} for text in TEXTS[2:4]]
    data, found = prepared(tokenizer, tmp_path, rows, over_length="split", max_length_tokens=9)
    assert len(data.evaluation) > 2
    for document, size in zip(data.evaluation, found, strict=True):
        labels = [
            document.token_ids[place] for first, end, _ in document.spans for place in range(first, end)
        ]
        written = tokenizer.convert_ids_to_tokens(
            [label for label in labels if label != tokenizer.eos_token_id]
        )
        assert size == sum(map(len, written))  # byte-level: a character of the vocabulary stands for a byte
