"""The train section: how it is learned."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from data_prep.config import Section
from finetune.recipe.schema.evaluate import MetricName
from finetune.recipe.schema.every import NEVER, Every

Steps = Annotated[int, Field(ge=1)]


def _two(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 2:
        raise ValueError(f"got {len(values)} numbers, expected two, such as [0.9, 0.999]")
    return values


Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], ...],
    Field(strict=False),
    AfterValidator(_two),
]


class EarlyStopping(Section):
    """Stop when evaluations (their loss, or train.best_by) no longer improve; the best checkpoint becomes the
    result."""

    patience_evaluations: Annotated[int, Field(ge=1)] = 3
    """How many evaluations in a row may bring no improvement on the best so far, the one before the first
    step included."""

    minimum_improvement: Annotated[float, Field(ge=0)] = 0.0
    """By how much the loss (or train.best_by) must improve to count as an improvement."""


class TrainSection(Section):
    """How it is learned."""

    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-4
    """The highest learning rate of the schedule."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows, as data.train mixes them; 1 when max_steps is absent too."""

    max_steps: Steps | None = None
    """Optimizer steps, in place of epochs."""

    global_batch_size: Annotated[int, Field(ge=1)] = 8
    """Packs per optimizer step, over all processes; rows where packing is off."""

    micro_batch_size: Annotated[int, Field(ge=1)] = 1
    """Packs (or rows) per forward pass. Accumulation is derived: global_batch_size / (micro_batch_size x
    processes)."""

    sequence_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Processes that share each pack (Ulysses, Jacobs et al. 2023, arXiv:2309.14509): each has a part of its
    tokens, so that activations take as many times less memory. For long rows, with --launch ddp or fsdp2."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Order of the rows, initial adapter, dropout."""

    adam_betas: Betas = (0.9, 0.999)
    """How much of Adam's (and Lion's) two running means is kept in a step."""

    adam_bias_correction: bool = True
    """adamw and adam: running means are divided by 1 - beta^t, as in the paper; false is MLX's default, whose
    first steps are longer."""

    adam_epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-8
    """What Adam adds to the root of its second mean."""

    loraplus_lr_ratio: Annotated[float, Field(gt=0, le=1e4)] | None = None
    """The matrices B of the adapter have this many times the learning rate (LoRA+, Hayou et al. 2024,
    arXiv:2402.12354)."""

    riemannian_damping: Annotated[float, Field(gt=0, le=1e4)] | None = None
    """The gradients of the adapter's A and B are preconditioned by (B^T B + d I)^-1 and (A A^T + d I)^-1,
    with this d (Riemannian-preconditioned LoRA, Zhang and Pilanci 2024, arXiv:2402.02347; 0.01 is peft's);
    not when absent."""

    embedding_learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """The highest learning rate of embed_tokens and lm_head, where they are trained: adapter.modules_to_save,
    model.new_tokens, or method full."""

    optimizer: str = "adamw"
    """adamw, adam (whose weight decay is coupled), adafactor, sgd, rmsprop, adagrad, lion, adamw_8bit, muon
    (method full: the layers' matrices, and AdamW for all else), polora (LoRA's pairs of matrices; another
    scale of learning rates), schedule_free_adamw (an average of the weights in place of a decay: schedule
    constant), or any other name of transformers' OptimizerNames."""

    schedule: Literal["constant", "linear", "cosine", "cosine_with_minimum", "wsd", "step"] = "cosine"
    """The learning rate after the warm-up; wsd is warm-up, stable, decay; step multiplies by
    step_decay_factor at each step_decay_every. A decay ends where the step after the last one would be, so
    no step has the rate 0."""

    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps used for warm-up: step k of w has k/w of the learning rate (wsd: of the way from
    its minimum)."""

    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps used for warm-up, in place of warmup_ratio."""

    step_decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.85
    """step: what the learning rate is multiplied by, each time."""

    step_decay_every: Every = "1 epoch"
    """step: how often, from the first step on; as log_every."""

    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """wsd: fraction of the steps in which it falls."""

    minimum_learning_rate_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """cosine_with_minimum and wsd: the lowest learning rate, as a fraction of learning_rate."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""

    max_gradient_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are clipped to this norm; null clips nothing."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the target's probability that is spread over the vocabulary."""

    neftune_alpha: Annotated[float, Field(gt=0)] | None = None
    """Noise on the embeddings (NEFTune, Jain et al. 2023, arXiv:2310.05914): up to alpha / sqrt(L d) for a
    document of L tokens and a model of width d, the same however documents are packed or batched."""

    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""

    activation_checkpointing_every_layers: Annotated[int, Field(ge=1)] = 1
    """With activation_checkpointing: 1 recomputes every layer, 2 every other one; more memory, and faster."""

    activation_checkpointing_keep_attention: bool = False
    """With activation_checkpointing: attention's output is kept, so that attention is not computed twice; for
    long rows, where attention takes most of the time."""

    activation_offloading: bool = False
    """With activation_checkpointing: what goes into each recomputed layer waits in the host's memory, pinned,
    copied while the GPU computes; a few layers' inputs are on the GPU at a time. For long rows."""

    mlp_tile_tokens: Annotated[int, Field(ge=1)] | None = None
    """MLPs are computed over tiles of so many tokens, forward and backward, so that their inner activations
    exist for one tile alone; null computes whole rows. For long rows: 4096 to 16384; for LoRA without
    dropout."""

    rehearsal: bool = True
    """Run the heaviest batches once before step 1, so that a lack of memory shows at once."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The base's and the arithmetic's type; the adapter and the optimizer's state stay fp32. auto: bf16 where
    native."""

    base_arithmetic: Literal["fp8"] | None = None
    """fp8: the frozen base's layers multiply 8-bit numbers (E4M3; a scale for each row of a weight and for
    each token), on GPUs of compute capability 8.9 or above. For lora, in one process or ddp; null multiplies
    in train.precision."""

    deterministic: bool = False
    """Sums in one order on a GPU too, so that the same run gives the same bits; slower there. On the CPU that
    is so without it."""

    weights_dtype: Literal["fp32", "bf16"] = "fp32"
    """Method full: the type of the weights that train, and of gradients and the optimizer's state. bf16 takes
    8 bytes a parameter in place of 16; updates are rounded stochastically. For adamw, in one process or
    ddp."""

    early_stopping: EarlyStopping | None = None
    """Stop when the evaluations no longer improve."""

    best_by: MetricName | None = None
    """The metric (loss, perplexity, or one of evaluate.metrics) whose best checkpoint becomes the result, and
    by which early_stopping judges; when absent the last step is the result, or with early_stopping the one of
    the lowest loss."""

    log_every: Every = 1
    """How often metrics are logged: a number of steps, "1 epoch" or any other number of epochs, "10%" of all
    steps, or never but at the end."""

    evaluate_every: Every | None = None
    """How often the evaluation loss is measured, as log_every; at the start and the end only when absent, not
    even there with never."""

    save_every: Every | None = None
    """How often a checkpoint is saved, as log_every; at the end only when absent. never keeps what the result
    needs and no more: no checkpoint is left of a run that finished."""

    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many of the newest checkpoints are kept; the best one is kept beside them."""

    @property
    def keeps_best(self) -> bool:
        """Whether the result is the best checkpoint, in place of the last step."""
        return self.early_stopping is not None or self.best_by is not None

    @property
    def saves_checkpoints(self) -> bool:
        """Whether checkpoints are saved beyond those that a signal asks for."""
        return self.save_every != NEVER or self.keeps_best

    @property
    def arithmetic(self) -> str:
        """The precision to compute in: that of the weights where they are in bf16."""
        return "bf16" if self.weights_dtype == "bf16" else self.precision

    def readers(self, processes: int) -> int:
        """How many of the processes have rows of their own."""
        return processes // self.sequence_parallel_size

    def uneven_over(self, processes: int) -> str | None:
        """What is wrong with the batch sizes for so many processes; None where a global batch can be cut
        evenly."""
        if processes % self.sequence_parallel_size:
            return (
                f"train.sequence_parallel_size {self.sequence_parallel_size} does not divide {processes} "
                "processes. Change one of the two."
            )
        readers = self.readers(processes)
        if self.global_batch_size % (self.micro_batch_size * readers) == 0:
            return None
        shared = f" ({processes} that share packs)" if readers != processes else ""
        return (
            f"train.global_batch_size {self.global_batch_size} does not divide into micro_batch_size "
            f"{self.micro_batch_size} x {readers} processes{shared}. Change one of the three."
        )
