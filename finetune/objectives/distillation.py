"""Distillation: the student's next-token distributions follow a teacher's."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from data_prep.config import Section
from finetune.objectives.base import Objective
from finetune.recipe.given import Given, RuleProblem
from finetune.recipe.schema.objective import BASE

if TYPE_CHECKING:
    import torch

    from finetune.models.distillation import Teacher
    from finetune.models.loss import LossInputs
    from finetune.recipe.schema import Recipe
    from finetune.recipe.schema.model import ModelSection


class DistillOptions(Section):
    """Keys of objective distill."""

    teacher: str
    """A run, an adapter, a model (a folder, or a hub id), of the same tokenizer; or base: model.base without
    the adapter, which needs no second model."""
    teacher_quantization: Literal["none", "nf4"] = "none"
    """nf4: a teacher of its own is loaded in 4 bit."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """With P the teacher and Q the student: forward_kl is KL(P||Q), which covers all that the teacher would
    say; reverse_kl is KL(Q||P), which keeps to what it says most; jsd is beta KL(P||M) + (1 - beta) KL(Q||M)
    with M = beta P + (1 - beta) Q."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """divergence jsd: the share of the teacher in M. It vanishes at both ends, where TRL's is one of the two
    KLs: take that by its name."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Logits of both are divided by it; the loss isn't multiplied by its square."""
    supervised_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the cross-entropy of the rows' own tokens; the divergence has the rest."""

    @field_validator("teacher")
    @classmethod
    def _named(cls, teacher: str) -> str:
        if not teacher.strip():
            raise ValueError("got nothing, expected a run, an adapter, a model, or base")
        return teacher


class Distillation(Objective):
    """The mean divergence over supervised tokens, each by its weight (finetune.models.distillation)."""

    kind: ClassVar[str] = "distill"
    section: ClassVar[type[Section]] = DistillOptions
    logged: tuple[str, ...] = ("losses/divergence", "losses/supervised", "teacher/loss")

    def __init__(self, recipe: "Recipe"):
        super().__init__(recipe)
        self.teacher: Teacher | None = None
        """Set before the first step (finetune.training.teacher)."""

    @classmethod
    def outcome(cls, model: "ModelSection") -> str:
        """Text, whose likelihood is measured too."""
        return "text"

    def problems(self, given: Given) -> RuleProblem:
        """A teacher that is the student itself, and keys that nothing reads."""
        yield from super().problems(given)
        options, adapter = self.options, self.recipe.adapter
        if options.teacher == BASE and adapter.method == "full":
            yield "objective.teacher", "method full has no adapter to leave out; name a run or a model"
        learned = [*adapter.modules_to_save, *(["new tokens"] if self.recipe.model.new_tokens else [])]
        if options.teacher == BASE and learned:
            yield (
                "objective.teacher",
                f"{', '.join(learned)} are trained beside the adapter, and would change the teacher; name a "
                "run or a model",
            )
        if options.teacher == BASE and options.teacher_quantization != "none":
            yield "objective.teacher_quantization", "the teacher is model.base as it is; remove this key"
        if options.divergence != "jsd" and "objective.beta" in given:
            yield "objective.beta", f"only divergence jsd has it; this one is {options.divergence}"
        targets = () if isinstance(adapter.target_modules, str) else adapter.target_modules
        if "lm_head" in targets:
            yield (
                "adapter.target_modules",
                "objective distill computes with the head's own weight, and an adapter on it is beside that; "
                "leave lm_head out, or name it in adapter.modules_to_save",
            )

    def loss(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The sum of the divergences, and what it is made of."""
        from finetune.models.distillation import distillation_loss

        assert self.teacher is not None  # noqa: S101 - training sets it before the first call
        options = self.options
        return distillation_loss(
            model,
            hidden,
            inputs,
            self.teacher,
            kind=options.divergence,
            temperature=options.temperature,
            beta=options.beta,
            supervised_weight=options.supervised_weight,
        )

    def metrics_by_default(self, *, asks: bool) -> tuple[str, ...]:
        """Those of supervised fine-tuning."""
        return ("loss", "perplexity", "exact_match") if asks else ("loss", "perplexity")
