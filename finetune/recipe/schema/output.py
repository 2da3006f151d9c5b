"""The output section: where runs go."""

from typing import Annotated

from pydantic import Field

from data_prep.config import PATH, Section


class OutputSection(Section):
    """Where runs go."""

    folder: Annotated[str, PATH] = "runs"
    """The folder that holds run folders; relative to where the command is run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """The run's name, followed by a number; the recipe's file name when absent."""
