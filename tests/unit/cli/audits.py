"""What tests of finetune data write, run and read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Recipes:
    """Writes rows and recipes on the tiny base into a folder."""

    folder: Path
    base: Path

    def rows(self, name: str, rows: list[dict[str, Any]]) -> str:
        """A JSONL file; its name."""
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    def __call__(self, source: dict[str, Any] | list[dict[str, Any]], **sections: Any) -> str:
        """recipe.yaml with this source, or these, in data.train, and more keys of data; `model` and `train`
        are sections."""
        values: dict[str, Any] = {"model": {"base": str(self.base)} | sections.pop("model", {})}
        values["train"] = sections.pop("train", {})
        values["data"] = {"train": source if isinstance(source, list) else [source]} | sections
        (self.folder / "recipe.yaml").write_text(json.dumps(values))  # YAML reads JSON
        return "recipe.yaml"


def chat(question: str, answer: str, **keys: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer} | keys]
    }


def alpaca(count: int) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Say blue {n} times.", "output": " ".join(["blue"] * (n % 5 + 1))}
        for n in range(count)
    ]


MIXED = [
    *alpaca(8),
    {"instruction": "Say nothing.", "output": " "},
    {"instruction": "Say much.", "output": "blue " * 300},
    {"instruction": "Say <|im_end|>.", "output": "no"},
    {"instruction": "Say blue 1 times.", "output": "blue blue", "id": 3},
    {"instruction": "no output"},
]
"""Eight good rows, a repeated one, and four that are dropped, each for another reason."""


def mixed(recipe: Recipes, **sections: Any) -> str:
    source = {"path": recipe.rows("rows.jsonl", MIXED), "format": "alpaca"}
    return recipe(source, max_length_tokens=128, on_bad_row="skip", **sections)
