"""The tracking section: where metrics go besides the run folder's metrics.jsonl."""

from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import Section


class TrackingSection(Section):
    """Where metrics go besides the run folder's metrics.jsonl."""

    tracker: Literal["trackio", "wandb", "none"] = "trackio"
    """trackio (a local database, no account), wandb, or none."""

    project: Annotated[str, Field(min_length=1)] = "finetune"
    """The tracker's project."""

    wandb_mode: Literal["auto", "online", "offline"] = "auto"
    """auto: online where WANDB_API_KEY is set, else offline (`wandb sync` uploads later)."""
