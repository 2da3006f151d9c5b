"""The tracking section: where metrics go besides the run folder's metrics.jsonl."""

from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import Section

Text = Annotated[str, Field(min_length=1)]


TrackerName = Literal[
    "trackio", "wandb", "mlflow", "opentelemetry", "none", "azure_ml", "clearml", "codecarbon", "comet_ml",
    "dagshub", "dvclive", "flyte", "neptune", "swanlab", "tensorboard",
]  # fmt: skip


class SamplesSection(Section):
    """Texts that the model writes while it trains."""

    prompts: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]
    """What the model is asked: a user's turn each, where the tokenizer has a chat template."""

    every_steps: Annotated[int, Field(ge=1)] = 50
    """Before the first step, after every so many, and at the end."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """The longest answer."""


class TrackingSection(Section):
    """Where metrics go besides the run folder's metrics.jsonl."""

    tracker: TrackerName | Annotated[tuple[TrackerName, ...], Field(min_length=1, strict=False)] = "trackio"
    """trackio (a local database, no account), wandb, mlflow, opentelemetry, none, or one that transformers
    drives, under its own names; or a list of several, [wandb, tensorboard]."""

    project: Text = "finetune"
    """The tracker's project, mlflow's experiment. Where this is not written, WANDB_PROJECT or
    MLFLOW_EXPERIMENT_NAME (group, tags and notes go by wandb's variables too)."""

    group: Text | None = None
    """Runs that belong together, in trackio, wandb, mlflow and opentelemetry."""

    tags: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """The run's tags in wandb and mlflow."""

    notes: Text | None = None
    """What the run is for, in wandb and mlflow."""

    upload_adapter: bool = False
    """Log the trained adapter to wandb or mlflow as an artifact."""

    wandb_mode: Literal["auto", "online", "offline"] = "auto"
    """auto: as WANDB_MODE says, else online where wandb has an account, else offline (`wandb sync` uploads
    later)."""

    samples: SamplesSection | None = None
    """Texts that the model writes while it trains: samples.jsonl in the run folder, a table in trackio, wandb
    and mlflow."""

    @property
    def trackers(self) -> tuple[TrackerName, ...]:
        """The trackers, also where there is one."""
        return (self.tracker,) if isinstance(self.tracker, str) else self.tracker
