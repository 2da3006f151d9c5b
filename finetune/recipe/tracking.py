"""Which keys of the tracking section each tracker takes, and what trackers' own environment variables say of
a run where its recipe says nothing."""

import os

from finetune.recipe.schema import Recipe
from finetune.recipe.schema.tracking import TrackingSection

VARIABLES = {
    "wandb": {
        "project": "WANDB_PROJECT",
        "group": "WANDB_RUN_GROUP",
        "tags": "WANDB_TAGS",
        "notes": "WANDB_NOTES",
    },
    "mlflow": {"project": "MLFLOW_EXPERIMENT_NAME"},
}
"""Of each tracker: keys of the tracking section -> its variables. What has no key here (entity, job type,
the server's address ...) a tracker reads by itself."""
RUN_ID = "WANDB_RUN_ID"
TAKEN_BY = {
    "project": ("trackio", "wandb", "mlflow", "opentelemetry"),
    "group": ("trackio", "wandb", "mlflow", "opentelemetry"),
    "tags": ("wandb", "mlflow"),
    "notes": ("wandb", "mlflow"),
    "upload_adapter": ("wandb", "mlflow"),
    "wandb_mode": ("wandb",),
}
"""Keys of the tracking section -> the trackers that they mean something to."""


def said_by_environment(section: TrackingSection) -> dict[str, str]:
    """The keys that the environment decides, and the variables that do: of the tracker that is named
    first."""
    return {
        key: variable
        for name in reversed(section.trackers)
        for key, variable in VARIABLES.get(name, {}).items()
        if os.environ.get(variable) and key not in section.model_fields_set
    }


def with_environment(section: TrackingSection) -> TrackingSection:
    """The section with what the environment says where it was written by nobody."""
    found: dict[str, str | list[str]] = {
        key: os.environ[name] for key, name in said_by_environment(section).items()
    }
    if "tags" in found:
        found["tags"] = [tag.strip() for tag in str(found["tags"]).split(",") if tag.strip()]
    written = section.model_dump(mode="json", exclude_unset=True)
    return TrackingSection.model_validate(written | found) if found else section


def tracked(recipe: Recipe) -> Recipe:
    """The recipe with such a tracking section, which its lock then holds."""
    section = with_environment(recipe.tracking)
    return recipe if section is recipe.tracking else recipe.model_copy(update={"tracking": section})


def tracker_id(recipe: Recipe, otherwise: str) -> str:
    """The run's id in its tracker."""
    return (os.environ.get(RUN_ID) if "wandb" in recipe.tracking.trackers else None) or otherwise
