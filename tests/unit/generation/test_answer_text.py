"""Pieces of text while tokens come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from finetune.generation.answer_text import AnswerText


def pieces_of(tokenizer: PreTrainedTokenizerFast, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    text = AnswerText(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(text.add(token))
        if text.stopped:
            break
    return [*pieces, text.finish()]


@pytest.mark.torch
@given(data=st.data())
def test_pieces_together_are_the_whole_text(tokenizer: PreTrainedTokenizerFast, data: st.DataObject) -> None:
    """Whatever tokens come: bytes of no character, special tokens, one after the other."""
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces_of(tokenizer, ids)) == whole


def test_no_piece_holds_a_part_of_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    """A character of several tokens comes whole."""
    ids = tokenizer("a 🦙 b", add_special_tokens=False)["input_ids"]
    assert len(ids) > 6
    assert all("\ufffd" not in piece for piece in pieces_of(tokenizer, ids))


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("lamps",), "Please send two brass "),
        (("brass lamps to", "two"), "Please send "),
        (("Z",), "Please send two brass lamps to Ada"),
        (("Adam",), "Please send two brass lamps to Ada"),
        (("P",), ""),
    ],
)
def test_the_first_stop_ends_the_text(
    tokenizer: PreTrainedTokenizerFast, stop: tuple[str, ...], expected: str
) -> None:
    """What only begins like one is given after all."""
    ids = tokenizer("Please send two brass lamps to Ada", add_special_tokens=False)["input_ids"]
    assert "".join(pieces_of(tokenizer, ids, stop)) == expected


def of_sentence_piece() -> PreTrainedTokenizerFast:
    """A tokenizer whose rare characters are bytes, as LLaMA 2's are."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256, "a": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    ("ids", "pieces"),
    [
        ([*"é€".encode(), 257], ["é", "€", "a"]),
        # Beside bytes that are no character the tokenizer alone would give up whole ones, too.
        ([*"é".encode(), *"€".encode()[:2]], ["é", "\ufffd\ufffd"]),
        ([*"é".encode(), *"€".encode()[:1], 257], ["é", "\ufffda"]),
    ],
    ids=["whole", "cut", "broken"],
)
def test_whole_characters_stay_beside_broken_ones(ids: list[int], pieces: list[str]) -> None:
    """Pieces that were given are not taken back, and what is broken is shown."""
    assert [piece for piece in pieces_of(of_sentence_piece(), ids) if piece] == pieces
