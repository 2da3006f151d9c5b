"""Distillation: the student's next-token distributions follow a teacher's."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from data_prep.config import Section
from finetune.objectives.base import Objective
from finetune.objectives.drawing import DrawingOptions
from finetune.recipe.given import Given, RuleProblem
from finetune.recipe.schema.objective import BASE, is_server

if TYPE_CHECKING:
    import torch

    from finetune.models.distillation import Likeliest, Teacher
    from finetune.models.loss import LossInputs
    from finetune.recipe.schema import Recipe
    from finetune.recipe.schema.model import ModelSection


class OnPolicySection(DrawingOptions):
    """Rows whose answers the student draws itself before the step, with its weights of that moment, for the
    teacher to judge (Agarwal et al. 2023, arXiv:2306.13649)."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    """How many of a global batch's rows; of the others the rows' own answers are learned."""


class DistillOptions(Section):
    """Keys of objective distill."""

    teacher: str
    """A run, an adapter, a model (a folder, or a hub id), of the same tokenizer; or base: model.base without
    the adapter, which needs no second model; or with top_k the address of a server that tells prompt_logprobs
    (finetune serve, vLLM), such as http://localhost:8000/v1."""
    teacher_model: str | None = None
    """A server's name for the teacher."""
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
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Offline: so many of the teacher's likeliest tokens at each position, with their probabilities, are
    computed before step 1 and kept in the cache, the others counting as one. The teacher isn't in memory
    while the student trains. forward_kl only, of which this is a lower bound."""
    on_policy: OnPolicySection | None = None
    """Absent: only the rows' own answers are learned. Not with top_k."""

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
        if self.options.top_k is not None:
            self.logged = (*type(self).logged, "teacher/mass")
        self.teacher: Teacher | None = None
        """Set before the first step (finetune.training.teacher); None where it was asked before, with
        top_k."""
        self.vocabulary = 0
        """With top_k: over how many tokens the teacher's distributions are; set before the first step."""

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
        yield from self._server_problems()
        if options.divergence != "jsd" and "objective.beta" in given:
            yield "objective.beta", f"only divergence jsd has it; this one is {options.divergence}"
        yield from self._offline_problems()
        yield from self._on_policy_problems()
        targets = () if isinstance(adapter.target_modules, str) else adapter.target_modules
        if "lm_head" in targets:
            yield (
                "adapter.target_modules",
                "objective distill computes with the head's own weight, and an adapter on it is beside that; "
                "leave lm_head out, or name it in adapter.modules_to_save",
            )

    def _server_problems(self) -> RuleProblem:
        """What a server tells, and what it doesn't."""
        options = self.options
        if not is_server(options.teacher):
            if options.teacher_model is not None:
                yield "objective.teacher_model", "is a server's name for the teacher; remove this key"
            return
        if "@" in options.teacher.split("/")[2]:
            yield "objective.teacher", "has a password in it; give the key in FINETUNE_API_KEY instead"
        if options.teacher_model is None:
            yield "objective.teacher_model", "is missing: a server's name for the teacher"
        if options.top_k is None:
            yield (
                "objective.top_k",
                "is missing: a server is asked before step 1, for its likeliest tokens at each position",
            )
        if options.temperature != 1:
            yield (
                "objective.temperature",
                f"a server tells probabilities at temperature 1, and this is {options.temperature:g}; set it "
                "to 1, or load the teacher here",
            )
        if options.teacher_quantization != "none":
            yield "objective.teacher_quantization", "the server has its own; remove this key"

    def _offline_problems(self) -> RuleProblem:
        """What doesn't go with a teacher that is asked before step 1, about rows as they are then."""
        options, data = self.options, self.recipe.data
        if options.top_k is None:
            return
        if options.divergence != "forward_kl":
            yield (
                "objective.divergence",
                f"{options.divergence} needs the teacher's probability of every token, and objective.top_k "
                "keeps those of the likeliest; take forward_kl, or remove top_k and ask it in each step",
            )
        unfit = {
            "data.streaming": (data.streaming is not None, "asks the teacher about every row before step 1"),
            "data.pack_split": (data.pack_split, "asks the teacher about complete rows, and this cuts them"),
            "data.attention": (
                data.attention == "leaky",
                "asks the teacher about each row alone, and here rows attend to those before them",
            ),
            "train.sequence_parallel_size": (
                self.recipe.train.sequence_parallel_size > 1,
                "keeps what the teacher says of whole rows, which processes share here",
            ),
        }
        for path, (holds, why) in unfit.items():
            if holds:
                yield path, f"objective.top_k {why}; remove one of the two"

    def _on_policy_problems(self) -> RuleProblem:
        """What doesn't go with answers that aren't there before their step."""
        options, data, train = self.options, self.recipe.data, self.recipe.train
        if options.on_policy is None:
            return
        if options.top_k is not None:
            yield (
                "objective.on_policy",
                "its answers aren't there before step 1, when objective.top_k asks the teacher; remove one "
                "of the two",
            )
        unfit = {
            "data.streaming": (data.streaming is not None, "needs all prompts before step 1"),
            "data.pack_length_tokens": (
                data.pack_length_tokens is not None,
                "draws answers of any length, of which nobody knows how many fill a pack",
            ),
            "data.over_length": (data.over_length == "split", "asks complete rows, and this cuts them"),
            "data.attention": (data.attention == "leaky", "draws each answer behind its own prompt alone"),
            "train.sequence_parallel_size": (
                train.sequence_parallel_size > 1,
                "draws short answers, whose rows processes don't share",
            ),
            "train.base_arithmetic": (
                train.base_arithmetic is not None,
                "was never shown to draw with a base in FP8",
            ),
        }
        for path, (holds, why) in unfit.items():
            if holds:
                yield path, f"objective.on_policy {why}; remove this key"
        for index, source in enumerate(data.train):
            if source.format == "text":
                yield (
                    f"data.train.{index}.format",
                    "objective.on_policy asks prompts, and rows of format text have none; take one with "
                    "prompts, or remove on_policy",
                )

    def loss(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The sum of the divergences, and what it is made of."""
        from finetune.models.distillation import distillation_loss, stored_distillation_loss

        options = self.options
        if options.top_k is not None:
            return stored_distillation_loss(
                model,
                hidden,
                inputs,
                self._stored(inputs),
                temperature=options.temperature,
                supervised_weight=options.supervised_weight,
            )
        assert self.teacher is not None  # noqa: S101 - training sets it before the first call
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

    def _stored(self, inputs: "LossInputs") -> "Likeliest":
        """What the teacher said of the batch's positions."""
        from finetune.models.distillation import Likeliest

        numbers, tokens = inputs.position_values, inputs.position_tokens
        if numbers is None or tokens is None:  # a batch that fills up, or is rehearsed
            positions = len(inputs.supervised_positions)
            return Likeliest.of_nothing(self.options.top_k, self.vocabulary, positions)
        return Likeliest(tokens, numbers[:, 1:], numbers[:, 0], self.vocabulary)

    def metrics_by_default(self, *, asks: bool) -> tuple[str, ...]:
        """Those of supervised fine-tuning."""
        return ("loss", "perplexity", "exact_match") if asks else ("loss", "perplexity")
