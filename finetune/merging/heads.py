"""A classification head in a merge: the adapter brings it whole, and it takes the place of the head that
predicts tokens.

Loads no torch: plans ask here as well.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data_prep.config import HeadSection
from finetune.errors import MergeError
from finetune.models.architectures.base import LM_HEAD
from finetune.recipe.heads import (
    CLASSIFIER,
    CLASSIFIES,
    classifies,
    described_head,
    head_of_config,
    named_outputs,
)
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target

if TYPE_CHECKING:
    from finetune.merging.adapter import Adapter
    from finetune.models.safetensors import StoredWeights

SCORE = "score"
SCORE_WEIGHT, LM_HEAD_WEIGHT = f"{SCORE}.weight", f"{LM_HEAD}.weight"
SAVED = re.compile(r"(base_model\.model\.)?score(\.(modules_to_save|default))*\.weight")
"""How peft names the head in an adapter's file."""

SHOWN_LABELS = 20


class TokenHead:
    """The head of a merged model that predicts tokens: it is the base's, with the adapter's update where it
    has one."""

    section: HeadSection | None = None
    classifies: ClassVar[bool] = False
    brought: ClassVar[tuple[str, ...]] = ()
    """Tensors that the adapter brings whole; they stay in the type in which they were trained where no other
    is asked for."""

    def put_in(self, stored: "StoredWeights", adapter: "Adapter") -> None:
        """Let the base's tensors be those that the adapter's updates are for."""

    def in_config(self, config: dict[str, Any], pad_token_id: int | None) -> dict[str, Any]:
        """The base's config.json with this head in it."""
        return config

    def kept(self, config: dict[str, Any]) -> dict[str, Any]:
        """What of that describes the head."""
        return {}

    def in_model(self, model: ModelSection) -> ModelSection:
        """The recipe's model section with this head."""
        return model

    def prepare(self, model_config: Any, config: dict[str, Any]) -> None:
        """Let a model that is computed with have what `in_config` says and loading it doesn't."""

    def is_tied(self, model: Any) -> bool | None:
        """Whether its weight is the embedding's; None where there is no such question."""
        return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)

    def generation_of(self, base: Path) -> dict[str, Any] | None:
        """The generation_config.json that goes with the merged model."""
        from finetune.models.description import read_generation_config

        return read_generation_config(base)

    def notes(self, base: Path, *, templated: bool) -> tuple[str, ...]:
        """What is to be said of it; `templated`: texts go through the chat template."""
        from finetune.models.description import generation_notes

        return tuple(generation_notes(base))

    def facts(self, dtype: str) -> dict[str, str]:
        """For the card; `dtype` is what it is stored in."""
        return {}

    def reading(self, *, templated: bool) -> str:
        """For the card: how the model is asked, where that is not as usual."""
        return ""


@dataclass(frozen=True)
class ClassifierHead(TokenHead):
    """The classification head of a merged model: the adapter brings it whole."""

    section: HeadSection = field()
    described: dict[str, Any]
    """What config.json says of its outputs: id2label, label2id, and problem_type where it is known."""
    note: str | None = None
    classifies: ClassVar[bool] = True
    brought: ClassVar[tuple[str, ...]] = (SCORE_WEIGHT,)

    def put_in(self, stored: "StoredWeights", adapter: "Adapter") -> None:
        """Put the adapter's head among the base's tensors, in place of the one that predicts tokens.

        It stays in the type in which it was trained, float32, where --dtype names no other: it is small, and
        nothing is lost.
        """
        stored.tensors.pop(LM_HEAD_WEIGHT, None)
        name = score_name(adapter.weights.names())
        assert name is not None  # noqa: S101 - read_head looked
        stored.tensors[SCORE_WEIGHT] = adapter.weights.tensors[name]

    def in_config(self, config: dict[str, Any], pad_token_id: int | None) -> dict[str, Any]:
        """With its labels, and the token that fills rows up."""
        from finetune.models.description import head_values

        kept = {key: value for key, value in config.items() if key not in ("num_labels", "problem_type")}
        return kept | head_values(self.described, str(config.get("model_type")), pad_token_id)

    def kept(self, config: dict[str, Any]) -> dict[str, Any]:
        """Those."""
        return {key: config[key] for key in (*self.described, "architectures", "pad_token_id")}

    def in_model(self, model: ModelSection) -> ModelSection:
        """The recipe may not name it."""
        return model.model_copy(update={"head": self.section})

    def prepare(self, model_config: Any, config: dict[str, Any]) -> None:
        """The token that fills rows up: the head reads the last one that it isn't."""
        model_config.pad_token_id = config["pad_token_id"]

    def is_tied(self, model: Any) -> bool | None:
        """It never is."""
        return None

    def generation_of(self, base: Path) -> dict[str, Any] | None:
        """It writes no text."""
        return None

    def notes(self, base: Path, *, templated: bool) -> tuple[str, ...]:
        """Of its outputs, and of its texts."""
        named = (self.note,) if self.note else ()
        reads = (
            "texts go through the chat template before the head reads them: README.md in the output shows "
            "the call"
        )
        return (*named, reads) if templated else named

    def facts(self, dtype: str) -> dict[str, str]:
        """What its outputs are."""
        return {"head": f"{self.words} ({SCORE_WEIGHT} in {dtype})"}

    def reading(self, *, templated: bool) -> str:
        """A program that gives it a text as it was trained."""
        return how_it_reads(templated=templated)

    @property
    def words(self) -> str:
        """For people."""
        labels = list(map(str, self.described["id2label"].values()))
        more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
        return f"{self.section.problem}: {', '.join(labels[:SHOWN_LABELS])}{more}"


def score_name(names: Iterable[str]) -> str | None:
    """The name of the head among the tensors of an adapter's file; None where it holds none."""
    return next((name for name in names if SAVED.fullmatch(name)), None)


def read_head(
    target: Target, config: dict[str, Any], stored: "StoredWeights", adapters: Sequence["Adapter"]
) -> TokenHead:
    """The head of the merged model.

    Raises MergeError where the adapters, the base and what is known of the head contradict each other.
    """
    if not target.model.classifies and not any(map(_has_head, adapters)):
        if classifies(config):
            raise MergeError(
                f"the base {target.model.name} is a model with a classification head, and the adapter in "
                f"{adapters[0].folder} brings none: it belongs to a base that predicts tokens; name that one "
                "with --base."
            )
        return TokenHead()
    if len(adapters) > 1:
        raise MergeError(
            "several adapters can't go in at once where one has a classification head, which was trained "
            "with that adapter alone: merge them one at a time, each into what the one before gave (--base)."
        )
    outputs = _outputs(adapters[0], config, stored)
    named, own = target.model.head, _head_of_base(config)
    if named is None:
        return _plain_head(adapters[0], config, own, outputs)
    if named.outputs != outputs or own not in (None, named):
        raise MergeError(
            f"the head of {target.description} contradicts itself: by its notes it is {_words(named)}, by "
            + (
                f"its weights it has {outputs} outputs."
                if own in (None, named)
                else f"its base {_words(own)}."
            )
        )
    return ClassifierHead(named, described_head(named))


def how_it_reads(*, templated: bool) -> str:
    """For the card: what a text goes through before the head reads it, and a program that does it."""
    through = (
        "Each text went through the chat template, as a user's turn with the header of the answer behind it. "
        "A "
        '`pipeline("text-classification")` gives the model the bare text, which it was not trained on.'
    )
    call = (
        'inputs = tokenizer.apply_chat_template([{"role": "user", "content": text}], '
        "add_generation_prompt=True,\n"
        '                                       return_dict=True, return_tensors="pt")'
    )
    if not templated:
        through, call = (
            "Texts are read as they are, without a template.",
            'inputs = tokenizer(text, return_tensors="pt")',
        )
    return f"""{through}

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
{call}
outputs = model(**inputs).logits
```"""


def _has_head(adapter: "Adapter") -> bool:
    return score_name(adapter.weights.names()) is not None or adapter.config.get("task_type") == CLASSIFIES


def _head_of_base(config: dict[str, Any]) -> HeadSection | None:
    """The base's own head. Raises MergeError where its config.json is damaged."""
    try:
        return head_of_config(config)
    except (ValueError, AttributeError) as error:
        raise MergeError(
            f"the base's config.json is damaged: id2label is {config.get('id2label')}: {error}"
        ) from None


def _outputs(adapter: "Adapter", config: dict[str, Any], stored: "StoredWeights") -> int:
    """How many outputs the head has. Raises MergeError where it wasn't saved, or doesn't fit the base."""
    name = score_name(adapter.weights.names())
    if name is None:
        raise MergeError(
            f"the adapter in {adapter.folder} belongs to a model with a classification head, and its file "
            f"holds no {SCORE_WEIGHT}: the head that it was trained with is lost. peft saves it where "
            "modules_to_save names score."
        )
    task = adapter.config.get("task_type")
    if task not in (CLASSIFIES, None):
        raise MergeError(
            f"the adapter in {adapter.folder} has a head, and is of task_type {task}; expected {CLASSIFIES}, "
            "one answer for a whole row."
        )
    shape, width = adapter.weights.shape(name), config.get("hidden_size")
    own = stored.shape(SCORE_WEIGHT) if classifies(config) and SCORE_WEIGHT in stored.tensors else shape
    if len(shape) != 2 or not shape[0] or shape[1] != width or shape != own:
        there = f"a width of {width}" if shape == own else f"a head of shape {own}"
        raise MergeError(
            f"the adapter in {adapter.folder} does not fit the base: size mismatch, its head is of shape "
            f"{shape}, and the base has {there}; name the right one with --base."
        )
    return shape[0]


def _plain_head(
    adapter: "Adapter", config: dict[str, Any], own: HeadSection | None, outputs: int
) -> ClassifierHead:
    """Of an adapter that says nothing of its labels: the base's where it has such a head, else transformers'
    own names."""
    described = named_outputs([f"LABEL_{index}" for index in range(outputs)])
    if own is not None and own.outputs == outputs:
        kept = ("id2label", "label2id", "problem_type")
        return ClassifierHead(own, described | {key: config[key] for key in kept if config.get(key)})
    section = head_of_config(described | {"architectures": [CLASSIFIER]})
    assert section is not None  # noqa: S101 - the architecture says so
    note = (
        f"nothing in {adapter.folder} names the head's outputs: they are LABEL_0 and so on, as transformers "
        "calls them, until id2label and label2id in config.json say otherwise"
    )
    return ClassifierHead(section, described, note)


def _words(head: HeadSection | None) -> str:
    assert head  # noqa: S101 - the caller looked
    named = f" ({', '.join(head.labels)})" if head.labels else ""
    return f"of problem {head.problem} with {head.outputs} outputs{named}"
