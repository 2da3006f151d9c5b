"""All that a GGUF file says of a model beside its weights, and whether a file says it."""

from dataclasses import dataclass
from typing import Any

import torch

from finetune.errors import ExportError
from finetune.exporters.base import Description
from finetune.exporters.gguf.hyperparameters import hyperparameters_of
from finetune.exporters.gguf.vocabulary import vocabulary_of
from finetune.models.architectures import ArchitectureSpec, family_names, family_of
from finetune.models.bases.shapes import Shape, read_shape


@dataclass(frozen=True)
class Described:
    """A model beside its weights."""

    family: ArchitectureSpec
    shape: Shape
    values: dict[str, Any]
    """By their keys in GGUF; general.architecture aside, which is the family's."""
    tensors: dict[str, torch.Tensor]
    """Those that follow from the configuration."""
    notes: list[str]

    @property
    def context(self) -> int:
        """The longest text that the file says the model reads."""
        return int(self.values[f"{self.family.gguf.name}.context_length"])

    @property
    def pre_tokenizer(self) -> str | None:
        """llama.cpp's name for how the tokenizer splits texts."""
        found: str | None = self.values.get("tokenizer.ggml.pre")
        return found


def describe(description: Description) -> Described:
    """What a file says of a model. Raises ExportError for what llama.cpp doesn't have."""
    config = description.config.expected()
    family = family_of(config.model_type)
    if family is None:
        raise ExportError(
            f"the model is a {config.model_type}, and GGUF files are written of {family_names()}."
        )
    shape = read_shape(description.config.as_json())
    parameters = hyperparameters_of(config, shape, family)
    vocabulary = vocabulary_of(description.tokenizer, shape.vocabulary)
    values = {
        "general.type": "model",
        "general.name": description.name,
        **origin_of(description),
        **{f"{family.gguf.name}.{key}": value for key, value in parameters.values.items()},
        **{f"tokenizer.{key}": value for key, value in vocabulary.values.items()},
    }
    notes = [*parameters.notes, *vocabulary.notes]
    return Described(family, shape, values, parameters.tensors, notes)


def origin_of(description: Description) -> dict[str, Any]:
    """What a file says of the base that it was made from, as far as that is known."""
    found: dict[str, Any] = {}
    if description.licence is not None:
        found["general.license"] = description.licence
    if description.base is not None:
        owner, _, name = description.base.rpartition("/")
        found |= {
            "general.base_model.count": 1,
            "general.base_model.0.name": name,
            "general.base_model.0.organization": owner,
            "general.base_model.0.repo_url": f"https://huggingface.co/{description.base}",
        }
    return found


def put(writer: Any, key: str, value: Any) -> None:
    """A value into a gguf writer, in the type that llama.cpp reads it in."""
    add = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
        list: writer.add_array,
    }[type(value)]  # fmt: skip
    add(key, value)


def differences(values: dict[str, Any], reader: Any) -> list[str]:
    """What a gguf reader finds otherwise under these keys, in words."""
    found = []
    for key, value in values.items():
        field = reader.get_field(key)
        held = None if field is None else field.contents()
        if _as_stored(value) != held:
            found.append(f"{key} is {str(held)[:80]}, and {str(value)[:80]} was exported")
    return found


def _as_stored(value: Any) -> Any:
    """A value as it comes back: numbers are in float32."""
    if isinstance(value, float):
        return float(torch.tensor(value, dtype=torch.float32))
    return [_as_stored(each) for each in value] if isinstance(value, list) else value
