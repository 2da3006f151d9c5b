"""How a run's model is asked: as its rows are written."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import FinetuneError
from finetune.generation.asking import asked, prompt_ids
from finetune.recipe.schema import Recipe

PLAIN, CHAT = "plainly", "by the chat template"
TEXT, PAIR, ALPACA = (
    {"text": "a text"},
    {"prompt": "a", "completion": " b"},
    {"instruction": "a", "output": "b"},
)
TURNS = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
TEMPLATE = {"prompt": "{{ prompt }}", "completion": "{{ completion }}"}


@pytest.mark.parametrize(
    ("sources", "how"),
    [
        ([("text", TEXT)], PLAIN), ([("prompt_completion", PAIR)], PLAIN), ([("prompt_completion", TURNS)], CHAT),
        ([("auto", TEXT)], PLAIN), ([("auto", PAIR)], PLAIN), ([("auto", ALPACA)], CHAT), ([("alpaca", ALPACA)], CHAT),
        ([("text", TEXT), ("prompt_completion", PAIR)], PLAIN), ([("text", TEXT), ("alpaca", ALPACA)], CHAT),
        ([("template", PAIR)], CHAT), ([("template, plain", PAIR)], PLAIN), ([("python", PAIR)], PLAIN),
    ],
)  # fmt: skip
def test_the_rows_tell(
    tiny_base: Path, tmp_path: Path, sources: list[tuple[str, dict[str, Any]]], how: str
) -> None:
    """Plainly where all sources are plain texts; by the template once one of them is conversations."""
    recipe, sha256 = recipe_of(tiny_base, tmp_path, sources)
    assert asked(recipe, load_tokenizer(tiny_base), allow_code=sha256) == how
    (tmp_path / "tokenizer").mkdir()
    for file in tiny_base.glob("tokenizer*"):
        (tmp_path / "tokenizer" / file.name).write_bytes(file.read_bytes())
    assert asked(recipe, load_tokenizer(tmp_path / "tokenizer"), allow_code=sha256) == PLAIN


def recipe_of(
    base: Path, folder: Path, sources: list[tuple[str, dict[str, Any]]], **data: Any
) -> tuple[Recipe, set[str]]:
    import hashlib

    code = "def parse(row):\n    return dict(row)\n"
    (folder / "code.py").write_text(code)
    train = []
    for number, (name, row) in enumerate(sources):
        path = folder / f"rows{number}.jsonl"
        path.write_text(2 * (json.dumps(row) + "\n"))
        source: dict[str, Any] = {"path": str(path), "format": name.partition(",")[0]}
        if source["format"] == "template":
            source["template"] = TEMPLATE | {"chat": name == "template"}
        if name == "python":
            source["code"] = str(folder / "code.py")
        train.append(source)
    values = {"model": {"base": str(base)}, "data": {"train": train, "max_length_tokens": 64} | data}
    return Recipe.model_validate(values), {hashlib.sha256(code.encode()).hexdigest()}


def test_rows_that_cannot_be_read_do_not_tell(tiny_base: Path, tmp_path: Path) -> None:
    """A bad first row is passed over where the recipe skips it, and an error where it doesn't."""
    for on_bad_row in ("skip", "error"):
        recipe, _ = recipe_of(tiny_base, tmp_path, [("prompt_completion", PAIR)], on_bad_row=on_bad_row)
        path = tmp_path / "rows0.jsonl"
        path.write_text(json.dumps({"prompt": "a"}) + "\n" + path.read_text())
        if on_bad_row == "skip":
            assert asked(recipe, load_tokenizer(tiny_base)) == PLAIN
        else:
            with pytest.raises(DataError, match="completion"):
                asked(recipe, load_tokenizer(tiny_base))


def test_prompts_as_ids(tiny_base: Path, tmp_path: Path) -> None:
    """A plain prompt is its own tokens; by the template it is a user's turn, behind the system's."""
    tokenizer = load_tokenizer(tiny_base)
    assert prompt_ids("Hi", tokenizer, PLAIN) == tokenizer("Hi", add_special_tokens=False)["input_ids"]
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (
        prompt_ids("Hi", tokenizer, CHAT, "Be brief.")
        == tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    tokenizer.chat_template = None
    with pytest.raises(FinetuneError, match="no chat template"):
        prompt_ids("Hi", tokenizer, CHAT)
