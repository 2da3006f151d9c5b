"""Words of any script, also of one that writes no blanks between them: there each character counts as a
word."""

import unicodedata
from functools import lru_cache

UNSPACED = (
    "CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC", "BOPOMOFO", "HIRAGANA",
    "HENTAIGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI",
    "NEW TAI LUE", "BALINESE", "JAVANESE",
)  # fmt: skip
"""How Unicode's names of the letters of such scripts begin."""

JOINERS = "\u200c\u200d"
"""Stand inside words of Persian and of Indic scripts."""


@lru_cache(maxsize=2**16)
def is_unspaced(character: str) -> bool:
    """Whether it is a letter of a script without blanks between words."""
    return unicodedata.category(character)[0] == "L" and unicodedata.name(character, "").startswith(UNSPACED)


@lru_cache(maxsize=2**16)
def is_ideograph(character: str) -> bool:
    """Whether it is a Chinese character, which Japanese has too."""
    return unicodedata.name(character, "").startswith("CJK")


@lru_cache(maxsize=2**16)
def belongs_to_the_letter_before(character: str) -> bool:
    """Whether it is an accent, a vowel sign or a joiner."""
    return unicodedata.category(character)[0] == "M" or character in JOINERS


@lru_cache(maxsize=2**16)
def _is_of_words(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN" or belongs_to_the_letter_before(character)


def words(text: str) -> list[str]:
    """The words, numbers among them, in their order; of a script without blanks each letter with its
    marks."""
    return apart("".join(letter if _is_of_words(letter) else " " for letter in composed(text))).split()


def apart(text: str) -> str:
    """The text with blanks around each letter of a script without blanks between words."""
    pieces, behind = [], False
    for character in text:
        if is_unspaced(character):
            pieces.append(" ")
            behind = True
        elif behind and not belongs_to_the_letter_before(character):
            pieces.append(" ")
            behind = False
        pieces.append(character)
    return "".join(pieces)


def composed(text: str) -> str:
    """The text with a letter and its accents as one character, where there is one: it can be written in two
    ways."""
    return unicodedata.normalize("NFC", text)


def ends_word(text: str, end: int) -> bool:
    """Whether a word of the text can end before this position."""
    if end >= len(text):
        return True
    after = text[end]
    if belongs_to_the_letter_before(after):
        return False
    before = next(
        (letter for letter in reversed(text[:end]) if not belongs_to_the_letter_before(letter)), " "
    )
    return not (_is_of_words(after) or after == "_") or is_unspaced(after) or is_unspaced(before)
