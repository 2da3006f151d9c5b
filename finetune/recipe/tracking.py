"""What wandb's own environment variables say of a run, where its recipe says nothing."""

import os

from finetune.recipe.schema import Recipe
from finetune.recipe.schema.tracking import TrackingSection

VARIABLES = {
    "project": "WANDB_PROJECT",
    "group": "WANDB_RUN_GROUP",
    "tags": "WANDB_TAGS",
    "notes": "WANDB_NOTES",
}
"""Keys of the tracking section -> wandb's variables. What has no key here (entity, job type ...) wandb reads
by itself."""
RUN_ID = "WANDB_RUN_ID"


def said_by_environment(section: TrackingSection) -> dict[str, str]:
    """The keys that the environment decides, and the variables that do."""
    if "wandb" not in section.trackers:
        return {}
    return {
        key: name
        for key, name in VARIABLES.items()
        if os.environ.get(name) and key not in section.model_fields_set
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
