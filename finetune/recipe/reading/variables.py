"""${NAME} in a recipe's paths and names of models and data sets: the environment's value, and never a
secret."""

import os
import re

from finetune.recipe.reading.yaml_tree import shorten

VARIABLE = re.compile(r"\$\{([^}]*)\}?")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")
"""What the name of a variable holds whose value must not come into a recipe, which the run's lock keeps."""


def expanded(text: str) -> tuple[str, list[str]]:
    """The text with the values of its variables, and their names.

    Raises ValueError for one that is not set, or empty, for one that looks like a secret, and for what is no
    ${NAME}.
    """
    names: list[str] = []

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if not NAME.fullmatch(name) or not match[0].endswith("}"):
            raise ValueError(
                f"got {shorten(match[0])}, expected ${{NAME}}, the name of an environment variable"
            )
        if any(word in name.upper() for word in SECRET):
            raise ValueError(
                f"${{{name}}} may be a secret, which has no place in a recipe: give the variable another name"
            )
        if not os.environ.get(name):
            raise ValueError(
                f"the environment variable {name} is {'empty' if name in os.environ else 'not set'}"
            )
        names.append(name)
        return os.environ[name]

    return VARIABLE.sub(value, text), names
