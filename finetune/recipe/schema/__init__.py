"""The recipe's schema: one declaration per knob, with its bound, default and unit; a file a section."""

from pydantic import Field

from data_prep.config import DataSection, Section
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.evaluate import EvaluateSection
from finetune.recipe.schema.model import ModelSection
from finetune.recipe.schema.objective import ObjectiveSection
from finetune.recipe.schema.output import OutputSection
from finetune.recipe.schema.sweep import SweepSection
from finetune.recipe.schema.tracking import TrackingSection
from finetune.recipe.schema.train import TrainSection


class Recipe(Section):
    """Everything that decides what a run does."""

    model: ModelSection
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    data: DataSection
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)
    output: OutputSection = Field(default_factory=OutputSection)
    sweep: SweepSection | None = None
