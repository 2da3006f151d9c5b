"""Configurations damaged at random: one message each, never a traceback."""

import random
from pathlib import Path

import pytest

from finetune.conversion import convert_file
from finetune.errors import FinetuneError
from tests.unit.conversion.configurations import CASES, Case
from tests.unit.conversion.preferences import CASES as PAIRS

VALUES = (
    "[]", "{}", "null", "-1", "0", "1e400", '"x"', "[1, 2]", "{a: 1}", "true", "3.5", "[[1]]", "[{a: 1}]", '""',
    "yes", ".inf", "2020-01-01", "!!x 1", "&a 1", "${X}", "$X", "[a, {b: 1}]", "'",
)  # fmt: skip


def damaged(text: str, chance: random.Random) -> str:
    """The text with one to three lines changed, cut, doubled or left out."""
    lines = text.split("\n")
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(lines))
        line, kind = lines[at], chance.random()
        if kind < 0.7 and ":" in line:
            lines[at] = f"{line.split(':')[0]}: {chance.choice(VALUES)}"
        elif kind < 0.7 and "--" in line:
            lines[at] = f"{line.split()[0]} {chance.choice(VALUES)} \\"
        elif kind < 0.8 and len(lines) > 1:
            del lines[at]
        elif kind < 0.9:
            lines[at] = line[: chance.randrange(len(line) + 1)]
        else:
            lines.insert(at, line)
    return "\n".join(lines)


DAMAGED = (*CASES, *(Case("", f"pairs-{pairs.file}", pairs.text, {}) for pairs in PAIRS[1::5]))


@pytest.mark.parametrize("case", DAMAGED, ids=lambda case: case.file)
def test_a_damaged_configuration_is_converted_or_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty damaged copies each: a conversion, or an error of one line that the user can act on."""
    monkeypatch.chdir(tmp_path)
    chance = random.Random(case.file)  # noqa: S311
    said = []
    for _ in range(20):
        file = tmp_path / case.file
        file.write_text(damaged(case.text, chance))
        try:
            said.append(convert_file(file).recipe.splitlines()[0])
        except FinetuneError as error:
            said.append(str(error))
    assert [text for text in said if "\n" in text] == []
