"""What the card in a base's folder says of it. Loads no torch."""

import re
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

CARD = "README.md"
FRONT_MATTER = re.compile(r"\A---\n(.*?\n)?---(\n|\Z)", re.DOTALL)


def licence_in(folder: Path) -> str | None:
    """The licence that a folder's card names; None where it names none, or can't be read."""
    try:
        front = FRONT_MATTER.match((folder / CARD).read_text(encoding="utf-8-sig"))
        said = YAML(typ="safe", pure=True).load(front[1] or "") if front is not None else None
    except (OSError, ValueError, YAMLError):
        return None
    named = said.get("license") if isinstance(said, dict) else None
    return named if isinstance(named, str) else None
