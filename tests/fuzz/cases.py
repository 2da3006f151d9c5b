"""A case: a seed makes a folder in which one to three things of a model, adapter or run are changed, and a
command for it."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, get_args

from data_prep.config.section import Finding
from tests.fuzz.mutations import change_file
from tests.fuzz.subjects import BASES, recipe
from tests.fuzz.values import copy_tree

VERBS = {"check": 26, "train": 16, "generate": 18, "merge": 20, "inspect": 10, "plan": 10}
"""Each with how many cases of a hundred are of it."""

BASE_FILES = {
    "config.json": 34, "generation_config.json": 6, "tokenizer_config.json": 14, "tokenizer.json": 18,
    "chat_template.jinja": 10,
    "additional_chat_templates/tool_use.jinja": 1, "special_tokens_map.json": 2, "added_tokens.json": 2,
    "model.safetensors": 12,
}  # fmt: skip
ADAPTER_FILES = {
    "adapter_config.json": 60,
    "adapter_model.safetensors": 30,
    "tokenizer.json": 5,
    "tokenizer_config.json": 5,
}
RUN_FILES = {
    "recipe.lock.yaml": 30, "adapter/adapter_config.json": 15, "adapter/adapter_model.safetensors": 10,
    "adapter/finetune.json": 15, "adapter/tokenizer.json": 8, "adapter/tokenizer_config.json": 8,
    "adapter/chat_template.jinja": 6, "summary.json": 8,
}  # fmt: skip
CHECKPOINT_FILES = {
    "adapter_config.json": 3, "adapter_model.safetensors": 3, "complete.json": 3, "trainer_state.json": 3,
    "counters.json": 2, "optimizer.pt": 1, "scheduler.pt": 1, "rng_state.pth": 1,
}  # fmt: skip
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors.index.json", "adapter_config.json"}
"""Files whose faults must be said before the data are prepared, beside those of weights."""


@dataclass(frozen=True)
class Case:
    """What is run, and what was changed before."""

    seed: int
    words: list[str]
    """Of the command line, after `finetune`."""
    changes: list[tuple[str, str]]
    """File, and what was done to it, in words."""
    names: frozenset[str]
    """One of which a message about it should hold."""

    @property
    def of_the_model(self) -> bool:
        """Whether all that was changed belongs to config, weights or adapter, and nothing to tokenizer or
        template."""
        paths = [Path(file) for file, _ in self.changes]
        return all(path.name in MODEL_FILES or path.suffix == ".safetensors" for path in paths)

    def __str__(self) -> str:
        """The command, and the changes."""
        said = "; ".join(f"{file}: {what[:300]}" for file, what in self.changes)
        return f"finetune {' '.join(self.words)}  [{said}]"


def make_case(seed: int, subjects: Path, folder: Path) -> Case:
    """The case of a seed, with its files in `folder`, which is empty. The same seed makes the same case."""
    maker = Maker(Random(seed), subjects, folder)
    verb = maker.random.choices(list(VERBS), list(VERBS.values()))[0]
    words = getattr(maker, f"words_of_{verb}")()
    names = {name for file, _ in maker.changes for name in (Path(file).name, *Path(file).parts[:1])}
    return Case(seed, words, maker.changes, frozenset(names))


class Maker:
    """Copies and changes what a case is about."""

    def __init__(self, random: Random, subjects: Path, folder: Path):
        self.random, self.subjects, self.folder = random, subjects, folder
        self.changes: list[tuple[str, str]] = []

    def words_of_check(self) -> list[str]:
        return ["check", self._recipe(), "--deep"]

    def words_of_plan(self) -> list[str]:
        return [
            "plan",
            self._recipe(),
            "--gpus",
            self.random.choice(["1", "8"]),
            *self._maybe("--gpu-memory", "24GB"),
        ]

    def words_of_train(self) -> list[str]:
        if self.random.random() < 0.25:
            return ["train", "--resume", self._run("stopped")]
        return ["train", self._recipe()]

    def words_of_inspect(self) -> list[str]:
        return [
            "inspect",
            self.random.choice([self._recipe, self._base, self._base, self._adapter, self._any_run])(),
            *self._maybe("--json"),
        ]

    def words_of_generate(self) -> list[str]:
        target = self.random.choice([self._base, self._base, self._adapter, self._any_run])()
        options = [
            "--prompt",
            "Say blue.",
            "--max-new-tokens",
            "3",
            *self._maybe("--raw"),
            *self._maybe("--temperature", "0.7"),
        ]
        return ["generate", target, *options, *self._maybe("--system", "Be short.")]

    def words_of_merge(self) -> list[str]:
        target = self.random.choice([self._adapter, self._adapter, self._any_run])()
        options = [
            *self._maybe("--dtype", "bfloat16"),
            *self._maybe("--verify", "tensors"),
            *self._maybe("--qlora-base", "nf4"),
        ]
        return [
            "merge",
            target,
            *(["--plan"] if self.random.random() < 0.1 else ["--output", "merged"]),
            *options,
        ]

    def _maybe(self, *words: str) -> list[str]:
        return list(words) if self.random.random() < 0.25 else []

    def _recipe(self) -> str:
        """A recipe for a base that was changed, or for one that is whole and an adapter to go on with that
        was changed."""
        random = self.random
        changes: dict[str, dict[str, Any]] = {name: {} for name in ("model", "adapter", "data", "train")}
        if random.random() < 0.15:
            base = self.subjects / "llama"
            changes["adapter"] = {"continue_from": self._adapter(), "target_modules": ["q_proj", "v_proj"]}
        else:
            base = self.folder / self._base()
            changes["adapter"] = random.choice(
                [
                    {},
                    {},
                    {},
                    {"use_dora": True},
                    {"target_modules": ["q_proj"]},
                    {"method": "qlora"},
                    {"method": "full"},
                ]
            )
            if changes["adapter"] == {"method": "full"}:
                changes["adapter"] |= {"rank": None, "alpha": None}
        some = {
            "allow_untested": True, "new_tokens": ["<|new|>"],
            "chat_template": random.choice(["chatml", "llama3"]),
            "rope_scaling": random.choice([{"type": "linear", "factor": 2.0}, {"type": "yarn", "factor": 2.0}]),
            "pad_token": "<|im_end|>",
        }  # fmt: skip
        changes["model"] = {key: value for key, value in some.items() if random.random() < 0.1}
        if random.random() < 0.5:
            changes["data"] = {
                "allow_findings": [finding for finding in get_args(Finding) if finding != "leakage"]
            }
        if random.random() < 0.1:
            changes["data"] |= {"pack_length_tokens": 128}
        if random.random() < 0.1:
            changes["train"] = {"precision": random.choice(["bf16", "fp32"])}
        values = recipe(base, self.subjects / "rows.jsonl", self.folder / "runs", **changes)
        values["adapter"] = {key: value for key, value in values["adapter"].items() if value is not None}
        (self.folder / "recipe.yaml").write_text(json.dumps(values))
        return "recipe.yaml"

    def _base(self) -> str:
        kind = self.random.choices(BASES, [40, 8, 8, 8, 14, 8, 7, 7])[0]
        files = dict(BASE_FILES)
        if kind == "sharded":
            files |= {
                "model.safetensors.index.json": 40,
                "model-00002-of-*.safetensors": 20,
                "model.safetensors": 1,
            }
        if kind == "pieces":
            files |= {"tokenizer.model": 40, "tokenizer.json": 1}
        copy_tree(self.subjects / kind, self.folder / "base")
        self._change("base", files)
        return "base"

    def _adapter(self) -> str:
        """An adapter that was changed; or a whole one, whose base was."""
        copy_tree(self.subjects / "adapter", self.folder / "adapter")
        if self.random.random() < 0.3:
            copy_tree(self.subjects / "llama", self.folder / "base")
            path = self.folder / "adapter" / "adapter_config.json"
            path.write_text(
                json.dumps(
                    json.loads(path.read_text()) | {"base_model_name_or_path": str(self.folder / "base")}
                )
            )
            self._change("base", BASE_FILES)
        else:
            self._change("adapter", ADAPTER_FILES)
        return "adapter"

    def _any_run(self) -> str:
        return self._run(self.random.choice(["two_steps", "two_steps", "stopped"]))

    def _run(self, name: str) -> str:
        """A run of which something was changed, or a checkpoint of one."""
        run = f"runs/{name}-001"
        copy_tree(self.subjects / run, self.folder / run)
        checkpoint = "checkpoints/checkpoint-1"
        files = {f"{checkpoint}/{file}": weight for file, weight in CHECKPOINT_FILES.items()}
        in_checkpoint = name == "stopped" or self.random.random() < 0.15
        own = {
            file: weight
            for file, weight in RUN_FILES.items()
            if name != "stopped" or not file.startswith("adapter/")
        }
        self._change(run, (own | files) if in_checkpoint else own)
        return f"{run}/{checkpoint}" if in_checkpoint and name != "stopped" else run

    def _change(self, below: str, files: dict[str, int]) -> None:
        """One to three changes, each of a file by its weight; a pattern stands for its first file."""
        for file in self.random.choices(
            list(files), list(files.values()), k=self.random.choices([1, 2, 3], [60, 28, 12])[0]
        ):
            path = next(iter(sorted((self.folder / below).glob(file))), self.folder / below / file)
            self.changes.append((str(path.relative_to(self.folder)), change_file(self.random, path)))
