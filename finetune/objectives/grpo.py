"""Learning from rewards of answers that the model draws itself: GRPO and its kin."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from data_prep.config import Section
from data_prep.prompts import PromptEncoding
from finetune.objectives.base import Objective
from finetune.objectives.drawing import DrawingOptions
from finetune.recipe.given import Given, RuleProblem, asked
from finetune.recipe.schema.rewards import RewardSection

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

    from finetune.models.loss import LossInputs
    from finetune.models.policy import PolicyLoss
    from finetune.recipe.schema import Recipe
    from finetune.recipe.schema.model import ModelSection

CLIPS = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (0.2, 5.0)}
"""By how much a ratio may fall and rise: the papers' values, where they aren't GRPO's (0.2, 0.2)."""
UNSCALED = ("dr_grpo", "rloo")
"""Losses whose advantages aren't divided by a deviation."""


class GrpoOptions(DrawingOptions):
    """Keys of objective grpo."""

    rewards: Annotated[dict[str, RewardSection], Field(min_length=1)]
    """What answers are worth: the weighted sum of these."""
    loss: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo"] = "grpo"
    """How advantages teach, and what the sum is divided by (finetune.models.policy): grpo the mean over
    answers of their tokens' means, dapo and cispo all tokens, dr_grpo answers times max_new_tokens, gspo and
    rloo answers, each with one ratio."""
    group_size: Annotated[int, Field(ge=2, le=4096)] = 8
    """Answers to a prompt, which are compared with one another; a step has train.global_batch_size
    prompts."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Answers are drawn, and log-probabilities compared, of logits divided by it."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that have this probability together. Ratios are of the probabilities of
    all tokens, whatever top_p, top_k and min_p leave out."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Ratios count down to 1 minus this; when absent 0.2, of gspo 0.0003."""
    clip_high: Annotated[float, Field(gt=0, le=100)] | None = None
    """Ratios count up to 1 plus this; when absent 0.2, of dapo 0.28, of gspo 0.0004. Of cispo the largest
    ratio itself, 5 when absent."""
    resample: Annotated[int, Field(ge=0, le=100)] = 0
    """Groups whose answers all have one reward teach nothing: their prompts are answered anew, at most so
    many times (dynamic sampling, Yu et al. 2025, arXiv:2503.14476), and those that are still without signal
    are left out."""
    scale: Literal["group", "batch", "none"] | None = None
    """What advantages are divided by: the deviation of their group's rewards, or of all the step's; when
    absent group, of dr_grpo and rloo none."""
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from the reference, by the estimator k3."""
    reference: str = "start"
    """Of kl_weight. start: the model as it is before step 1; base: model.base without an adapter, where
    adapter.continue_from begins with another model; a run or an adapter (a folder, or a hub id) of the same
    base, which shares its weights and is asked in each step."""
    epochs_per_sample: Annotated[int, Field(ge=1, le=100)] = 1
    """Steps that learn from the same answers, one after the other."""
    mask_truncated: bool = False
    """Answers that were cut at max_new_tokens have a reward and teach nothing (Yu et al. 2025,
    arXiv:2503.14476)."""

    @field_validator("reference")
    @classmethod
    def _named(cls, reference: str) -> str:
        if not reference.strip() or reference == "none":
            got = "none, which is kl_weight: 0" if reference.strip() else "nothing"
            raise ValueError(f"got {got}; expected start, base, or an adapter")
        return reference


class Grpo(Objective):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): each prompt's answers are
    compared by their rewards, and the better ones made likelier, within a clip."""

    kind: ClassVar[str] = "grpo"
    section: ClassVar[type[Section]] = GrpoOptions
    encoding = PromptEncoding()

    def __init__(self, recipe: "Recipe"):
        super().__init__(recipe)
        options: GrpoOptions = self.options
        self.reference = options.reference
        self.reference_model: Module | None = None
        """An adapter that `reference` names, on the base; set with the model (finetune.training.build)."""
        self.logged = ("clipped", "log_ratio", "entropy", *(("kl",) if options.kl_weight else ()))

    @classmethod
    def outcome(cls, model: "ModelSection") -> str:
        """Text."""
        return "text"

    @property
    def scale(self) -> Literal["group", "batch", "none"]:
        """What advantages are divided by."""
        options: GrpoOptions = self.options
        return options.scale or ("none" if options.loss in UNSCALED else "group")

    def policy_loss(self) -> "PolicyLoss":
        """The loss with its bounds."""
        from finetune.models.policy import PolicyLoss

        options: GrpoOptions = self.options
        low, high = CLIPS.get(options.loss, (0.2, 0.2))
        return PolicyLoss(
            options.loss,
            low if options.clip_low is None else options.clip_low,
            high if options.clip_high is None else options.clip_high,
            options.kl_weight,
            options.max_new_tokens,
        )

    def values(self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs") -> "torch.Tensor":
        """The log-probability of each drawn token (N x 1)."""
        from finetune.models.policy import log_probabilities

        return log_probabilities(model, hidden, inputs, self.options.temperature)[:, None]

    def loss(
        self, model: Any, hidden: "torch.Tensor", inputs: "LossInputs"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The sum of the policy's losses, and what is logged of its tokens."""
        import torch

        from finetune.models.policy import log_probabilities
        from finetune.models.preference import summed

        found = log_probabilities(model, hidden, inputs, self.options.temperature)
        drawn = inputs.position_values
        # None in the rehearsal of the heaviest batches, which learns nothing.
        drawn = torch.zeros(len(found), 3) if drawn is None else drawn
        sampler, reference, advantages = drawn.to(found).unbind(1)
        owners = inputs.at_supervised(inputs.owners)
        loss, numbers = self.policy_loss()(found, sampler, advantages, reference, owners, inputs.documents)
        return loss, summed(numbers, self.logged)

    def weight(self, batch: dict[str, Any]) -> "torch.Tensor":
        """Its answers, or their tokens."""
        import torch

        from finetune.models.loss import LossInputs

        inputs = LossInputs(batch["shift_labels"], batch["input_ids"], lengths=batch.get("documents"))
        tokens = inputs.sums(torch.ones(len(inputs.supervised_positions)))
        return self.policy_loss().divisor(tokens)

    def problems(self, given: Given) -> RuleProblem:
        """What would make the trainer see other probabilities than the sampler, and what is of rows' own
        answers."""
        yield from super().problems(given)
        recipe, options = self.recipe, self.options
        data, train = recipe.data, recipe.train
        if recipe.adapter.dropout:
            yield (
                "adapter.dropout",
                "objective grpo compares the trained model with the one that drew the answers, which has no "
                "dropout; set it to 0",
            )
        if options.reference != "start" and not options.kl_weight:
            yield (
                "objective.reference",
                "kl_weight is 0, so that nothing is measured from it; remove this key, or set "
                "objective.kl_weight",
            )
        if options.reference == "base" and recipe.adapter.method == "full":
            yield "objective.reference", "method full has no adapter to leave out; set it to start"
        if recipe.adapter.method == "full" and recipe.objective.names_reference:
            yield (
                "objective.reference",
                "method full trains the base that the reference would stand on; set it to start",
            )
        if options.loss == "cispo" and options.clip_low is not None:
            yield "objective.clip_low", "cispo bounds ratios from above alone; remove this key"
        if options.loss == "dr_grpo" and self.scale != "none":
            yield (
                "objective.scale",
                "dr_grpo is without the division by a deviation; remove this key, or take loss grpo",
            )
        unread = {
            "train.neftune_alpha": train.neftune_alpha is not None,
            "train.base_arithmetic": train.base_arithmetic is not None,
            "data.pack_length_tokens": data.pack_length_tokens is not None,
            "data.pack_split": data.pack_split,
            "data.over_length": data.over_length == "split",
            "data.streaming": data.streaming is not None,
            "data.loss_weights": bool(data.loss_weights),
            "data.attention": asked(recipe, given, "data.attention"),
        }
        why = {
            "train.neftune_alpha": "would make the trainer see other probabilities than the sampler",
            "train.base_arithmetic": "was never shown to draw and learn the same probabilities",
            "data.streaming": "needs all prompts before step 1",
        }
        for path, wrong in unread.items():
            if wrong:
                words = why.get(path, "is about rows' own answers, which nothing learns here")
                yield path, f"objective grpo: this {words}; remove this key"
        if train.sequence_parallel_size > 1:
            yield (
                "train.sequence_parallel_size",
                "objective grpo draws short answers, whose rows processes don't share; remove this key",
            )
        for index, source in enumerate(data.train):
            if source.format == "text":
                yield (
                    f"data.train.{index}.format",
                    "objective grpo asks prompts, and rows of format text have none; take one with prompts",
                )
        if asked(recipe, given, "data.supervise") and data.supervise == "all":
            yield "data.supervise", "objective grpo learns drawn answers alone; remove this key"

    def metrics_by_default(self, *, asks: bool) -> tuple[str, ...]:
        """How often the likeliest answer is the row's own."""
        return ("exact_match",)
