"""YAML files of clusters."""

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString


def to_yaml(header: str, values: dict[str, Any]) -> str:
    """The text of a file, what is None left out, below a comment."""
    yaml, stream = YAML(), io.StringIO()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(_present(values), stream)
    return f"# {header}\n{stream.getvalue()}"


def script(text: str) -> str:
    """A shell script of several lines, written as one reads it."""
    return LiteralScalarString(text)


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(below) for key, below in value.items() if below is not None}
    return [_present(below) for below in value] if isinstance(value, list) else value
