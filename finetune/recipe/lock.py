"""The lock: what a run was made of, so that it can be explained, resumed and run again. Pure data; never a
secret."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from data_prep.config import PREPARATION
from data_prep.text import shown
from finetune.errors import Problem, RecipeError, first_wrong
from finetune.recipe.reading.old_names import current_values
from finetune.recipe.reading.yaml_tree import read_plain_lock
from finetune.recipe.schema import Recipe
from finetune.recipe.secrets import scrubbed_recipe, scrubbed_values

LOCK_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
"""Version 1 lacks origins, git and the final metrics; versions 1 and 2 lack the rules."""
ADAPTER_SHA256 = "adapter_sha256"
"""In `final`: of the adapter's weights, as they were written."""
START_HASH = "start_hash"
"""In `final`: of what trains before step 1, where the rows decide it (adapter.init)."""
HEADER = "# Written by finetune; `finetune train --resume` and `finetune runs` read it. Don't edit it.\n"


@dataclass(frozen=True)
class Rules:
    """How a recipe is carried out, where a later version of this toolkit does it otherwise: a run goes on by
    its own."""

    preparation: int = PREPARATION
    """From rows to tokens; see data_prep.config.PREPARATION."""
    schedule: int = 2
    """By 1 the first step's learning rate is 0; by 2 it is above
    (finetune.training.optimization.schedule)."""
    training: int = 2
    """By 1 a document's noise and rotary frequencies may depend on those beside it, and early stopping
    doesn't know the evaluation before the first step."""

    def __str__(self) -> str:
        return ", ".join(f"{name} {rule}" for name, rule in vars(self).items())


CURRENT_RULES = Rules()
RULES_BEFORE = Rules(preparation=2, schedule=1, training=1)
"""Of locks that don't say."""


@dataclass(frozen=True)
class Lock:
    """A resolved recipe, and the identity of everything that it names."""

    recipe: Recipe
    command: str
    created: str
    """ISO 8601, UTC."""
    base: dict[str, str] = field(default_factory=dict)
    """Kind, name, and commit or SHA-256."""
    tokenizer_sha256: str = ""
    template_sha256: str = ""
    data: dict[str, str] = field(default_factory=dict)
    """Source -> SHA-256 of its content."""
    teacher: dict[str, str] = field(default_factory=dict)
    """Of a distillation: as base, and its adapter's SHA-256; empty where it has no teacher of its own."""
    reference: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of an adapter that the steps are measured from."""
    rewards: dict[str, str] = field(default_factory=dict)
    """Of objective grpo: its reward models' fingerprints and the SHA-256 of its users' files, by the reward's
    name."""
    versions: dict[str, str] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    """Device, precision, threads, processes."""
    git: dict[str, str] = field(default_factory=dict)
    """Commit of the folder that the command was run in, and whether files differ from it; empty outside a
    repository."""
    rules: Rules = CURRENT_RULES
    tracker_id: str = ""
    """The run's id in its tracker; a resumed run goes on under it."""
    origins: dict[str, str] = field(default_factory=dict)
    """Where each value of the recipe was written."""
    final: dict[str, Any] = field(default_factory=dict)
    """The metrics at the end, and hashes of what was written; empty until then."""

    def as_dict(self) -> dict[str, Any]:
        """The lock as plain values, the recipe last."""
        facts = {name: value for name, value in vars(self).items() if name not in ("recipe", "rules")}
        return {
            "lock_version": LOCK_VERSION,
            "rules": vars(self.rules),
            **facts,
            "recipe": self.recipe.model_dump(mode="json"),
        }

    def without_secrets(self) -> dict[str, Any]:
        """The same with each text scrubbed but the paths that must be found: the recipe's, and a base's
        folder."""
        values = self.as_dict()
        base = values["base"] if values["base"].get("kind") == "folder" else scrubbed_values(values["base"])
        return {**scrubbed_values(values), "base": base, "recipe": scrubbed_recipe(values["recipe"])}

    def to_yaml(self) -> str:
        """The text of recipe.lock.yaml, without secrets."""
        stream = io.StringIO()
        yaml = YAML()
        yaml.width = 4096
        yaml.dump(self.without_secrets(), stream)
        return HEADER + stream.getvalue()


def tokenizer_facts(lock: Lock) -> dict[str, str]:
    """By what the tokenizer of a run is known again; its own hash holds for one version of the library that
    writes it."""
    return {
        "sha256": lock.tokenizer_sha256,
        "template_sha256": lock.template_sha256,
        "version": str(lock.versions.get("tokenizers", "")),
    }


def read_lock(path: Path) -> Lock:
    """Read a recipe.lock.yaml. Raises RecipeError where it is damaged or of another version, OSError where it
    is no file."""
    try:
        values = read_plain_lock(path)
    except ValueError as error:
        raise _refused(path, f"not a readable lock: {error}") from None
    if not isinstance(values, dict) or "recipe" not in values:
        raise _refused(path, "not a lock: it holds no recipe")
    if values.get("lock_version") not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise _refused(
            path, f"lock_version is {values.get('lock_version')}; this version of finetune reads {readable}"
        )
    for name in (
        "base",
        "data",
        "teacher",
        "reference",
        "rewards",
        "versions",
        "device",
        "git",
        "origins",
        "rules",
        "final",
    ):
        if not isinstance(values.get(name, {}), dict):
            raise _refused(path, f"not a lock: {name} is a {type(values[name]).__name__}")
    for name, rule in values.get("rules", {}).items():
        if type(rule) is not int:
            raise _refused(path, f"not a lock: rules.{name} is {shown(rule)}, expected a whole number")
    known = set(Lock.__dataclass_fields__)
    facts = {
        name: value for name, value in values.items() if name in known and name not in ("recipe", "rules")
    }
    try:
        rules = Rules(**values["rules"]) if "rules" in values else RULES_BEFORE
        return Lock(recipe=Recipe.model_validate(current_values(values["recipe"])), rules=rules, **facts)
    except ValidationError as error:
        raise _refused(path, f"its recipe is not valid: {first_wrong(error)}") from None
    except TypeError as error:
        raise _refused(path, f"not a lock: {error}") from None


def _refused(path: Path, message: str) -> RecipeError:
    return RecipeError([Problem(str(path), "", message)])
