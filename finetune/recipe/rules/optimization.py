"""Rules for optimizer steps: how many, how large, by which optimizer and learning rates. Each is a small
function; RULES lists them. No file is looked at."""

from collections.abc import Callable, Sequence

from finetune.models.architectures.base import VOCABULARY, last_part
from finetune.recipe.given import Given, RuleProblem, asked, near
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.every import NEVER, epochs_of
from finetune.recipe.schema.optimizers import OPTIMIZERS, known_optimizer

GATED_MLP = frozenset({"gate_proj", "up_proj", "down_proj"})


def _length(recipe: Recipe, given: Given) -> RuleProblem:
    if recipe.train.epochs is not None and recipe.train.max_steps is not None:
        yield "train.max_steps", "epochs and max_steps exclude each other; remove one"


def _batches(recipe: Recipe, given: Given) -> RuleProblem:
    whole, micro = recipe.train.global_batch_size, recipe.train.micro_batch_size
    if whole % micro:
        path = "train.micro_batch_size" if "train.micro_batch_size" in given else "train.global_batch_size"
        below, above = whole // micro * micro, (whole // micro + 1) * micro
        nearest = " or ".join(str(size) for size in (below, above) if size)
        message = (
            f"global_batch_size {whole} is not divisible by micro_batch_size {micro}; the nearest that is: "
            f"{nearest}"
        )
        yield path, message


def _schedule(recipe: Recipe, given: Given) -> RuleProblem:
    train = recipe.train
    minimum = "train.minimum_learning_rate_fraction"
    if (
        asked(recipe, given, minimum)
        and train.minimum_learning_rate_fraction != 0  # which the others have
        and train.schedule not in ("cosine_with_minimum", "wsd")
    ):
        message = f"only schedules cosine_with_minimum and wsd have a minimum; this one is {train.schedule}"
        yield minimum, message
    if train.warmup_steps is not None and train.warmup_ratio and asked(recipe, given, "train.warmup_ratio"):
        yield "train.warmup_ratio", "warmup_steps and warmup_ratio exclude each other; remove one"
    for knob in ("step_decay_factor", "step_decay_every"):
        if asked(recipe, given, f"train.{knob}") and train.schedule != "step":
            yield f"train.{knob}", f"only schedule step has it; this one is {train.schedule}"
    if train.schedule == "step" and train.step_decay_every == NEVER:
        yield "train.step_decay_every", "a learning rate that never falls is schedule: constant"
    if asked(recipe, given, "train.decay_fraction") and train.schedule != "wsd":
        yield (
            "train.decay_fraction",
            f"only schedule wsd has a decay of its own; this one is {train.schedule}",
        )
    if (
        train.schedule == "wsd"
        and train.warmup_steps is None
        and train.warmup_ratio + train.decay_fraction > 1
    ):
        path = "train.decay_fraction" if "train.decay_fraction" in given else "train.warmup_ratio"
        total = f"{train.warmup_ratio:g} + {train.decay_fraction:g}"
        yield path, f"warmup_ratio + decay_fraction is {total}, expected at most 1"


CORRECTED = (OPTIMIZERS["adamw"], OPTIMIZERS["adam"])


def _optimizer(recipe: Recipe, given: Given) -> RuleProblem:
    train = recipe.train
    name, found = train.optimizer, known_optimizer(train.optimizer)
    if found is None:
        close = near(name, OPTIMIZERS)
        hint = f"; did you mean {close}?" if close else ""
        yield (
            "train.optimizer",
            f"got {name!r}, expected {', '.join(OPTIMIZERS)} or another name of OptimizerNames{hint}",
        )
        return
    if found.refused:
        yield "train.optimizer", f"{name} {found.refused}"
        return
    if found.for_full and recipe.adapter.method != "full":
        yield (
            "train.optimizer",
            f"{name} steps along the base's own matrices, and method {recipe.adapter.method} trains an "
            "adapter beside them; take adamw, or adapter.method: full",
        )
    if found.averages:
        yield from _averages(recipe)
    if found.for_lora:
        yield from _for_lora(recipe)
    for knob in ("betas", "epsilon"):
        if asked(recipe, given, f"train.adam_{knob}") and knob not in found.knobs:
            yield f"train.adam_{knob}", f"optimizer {name} takes no {knob}; remove this, or take adamw"
    if not train.adam_bias_correction and OPTIMIZERS.get(name, name) not in CORRECTED:
        yield "train.adam_bias_correction", f"optimizer {name} has no such form; remove this, or take adamw"
    if train.weights_dtype == "bf16" and not train.adam_bias_correction:
        yield "train.adam_bias_correction", "weights in bf16 have the paper's AdamW; remove this"
    if train.weights_dtype == "bf16" and OPTIMIZERS.get(name, name) != OPTIMIZERS["adamw"]:
        yield "train.weights_dtype", f"only optimizer adamw rounds its updates to bf16; this one is {name}"


def _for_lora(recipe: Recipe) -> RuleProblem:
    """Pairs of matrices are all that trains, and what changes their gradients or rates is its own."""
    train, adapter, name = recipe.train, recipe.adapter, recipe.train.optimizer
    others = {
        "adapter.method": adapter.method not in ("lora", "qlora"),
        "adapter.use_dora": adapter.use_dora,
        "adapter.target_modules": not isinstance(adapter.target_modules, str)
        and "embed_tokens" in map(last_part, adapter.target_modules),
        "adapter.modules_to_save": bool(adapter.modules_to_save),
        "model.new_tokens": bool(recipe.model.new_tokens),
        "model.head": recipe.model.classifies,
    }
    for path, trains in others.items():
        if trains:
            yield (
                path,
                f"optimizer {name} trains both matrices of LoRA's layers and nothing else; remove this, or "
                "take adamw",
            )
    if adapter.starts_at_base:
        yield (
            "adapter.init",
            f"optimizer {name} bounds the step of B A, and {adapter.init} has a frozen half beside what "
            "trains; take another init, or adamw",
        )
    changed = {
        "train.weight_decay": bool(train.weight_decay),
        "train.loraplus_lr_ratio": train.loraplus_lr_ratio is not None,
        "train.riemannian_damping": train.riemannian_damping is not None,
    }
    for path, is_set in changed.items():
        if is_set:
            yield path, f"optimizer {name} has lengths of steps of its own; remove this, or take adamw"


def _averages(recipe: Recipe) -> RuleProblem:
    train = recipe.train
    if train.schedule != "constant":
        yield (
            "train.schedule",
            f"optimizer {train.optimizer} averages weights in place of a decay, and this is "
            f"{train.schedule}; set schedule: constant (warmup_ratio is taken)",
        )
    if not train.adam_betas[0]:
        yield "train.adam_betas", f"optimizer {train.optimizer} divides by the first, which is 0; take 0.9"
    if train.precision == "fp16":
        yield (
            "train.precision",
            f"fp16 leaves out steps that overflow, which optimizer {train.optimizer} must see; take "
            "bf16 or fp32",
        )
    if recipe.objective.draws:
        yield (
            "train.optimizer",
            f"{train.optimizer} takes its gradient at other weights than those that draw answers; take adamw",
        )


def _rates(recipe: Recipe, given: Given) -> RuleProblem:
    """Learning rates of parts of the weights need weights of that part that train."""
    train, adapter = recipe.train, recipe.adapter
    if train.loraplus_lr_ratio is not None and adapter.method == "full":
        yield "train.loraplus_lr_ratio", "method full has no adapter, and so no matrices B; remove this"
    if train.riemannian_damping is not None and adapter.method == "full":
        yield "train.riemannian_damping", "method full has no adapter to precondition; remove this"
    if train.riemannian_damping is not None and adapter.starts_at_base:
        yield (
            "train.riemannian_damping",
            f"half of the adapter that adapter.init {adapter.init} makes is frozen, which the preconditioner "
            "doesn't know; remove one of the two",
        )
    whole = VOCABULARY & set(map(last_part, adapter.modules_to_save))
    trains = adapter.method == "full" or recipe.model.new_tokens or whole
    if train.embedding_learning_rate is not None and not trains:
        yield (
            "train.embedding_learning_rate",
            "neither embed_tokens nor lm_head is trained; name them in adapter.modules_to_save, or "
            "remove this",
        )


def _weights_dtype(recipe: Recipe, given: Given) -> RuleProblem:
    train = recipe.train
    if train.weights_dtype != "bf16":
        return
    if recipe.adapter.method != "full":
        yield (
            "train.weights_dtype",
            f"method {recipe.adapter.method} trains an adapter, which is small and stays fp32; its base is "
            "in train.precision. Remove this",
        )
    elif train.precision not in ("auto", "bf16"):
        yield "train.weights_dtype", f"weights in bf16 compute in bf16; train.precision is {train.precision}"


def _base_arithmetic(recipe: Recipe, given: Given) -> RuleProblem:
    path, adapter = "train.base_arithmetic", recipe.adapter
    if recipe.train.base_arithmetic is None:
        return
    if adapter.method == "full":
        yield path, "fp8 is for a base that is frozen, and method full trains it; remove this, or use lora"
    if adapter.method == "qlora":
        yield (
            path,
            f"fp8 rounds a base of 16-bit weights, and qlora's are in {adapter.base_quantization}; remove "
            "this, or use lora",
        )
    if recipe.train.precision == "fp16":
        yield path, "FP8 products give bf16, and train.precision is fp16; set it to bf16 or auto"
    if recipe.objective.names_reference:
        yield (
            path,
            "the adapter that objective.reference names would be on a base in 16 bit; remove this, or set "
            "objective.reference to start or base",
        )


def _intervals(recipe: Recipe, given: Given) -> RuleProblem:
    """A stream's epochs have no known length, and what never happens can't be judged by."""
    train = recipe.train
    for knob in ("log_every", "evaluate_every", "save_every", "step_decay_every"):
        if (
            recipe.data.streaming is not None
            and epochs_of(getattr(train, knob)) is not None
            and (knob != "step_decay_every" or train.schedule == "step")
        ):
            yield (
                f"train.{knob}",
                "a stream's epochs have no known length; give a number of steps, or 10% of them",
            )
    if train.evaluate_every == NEVER:
        needing = {
            "train.early_stopping": train.early_stopping,
            "train.best_by": train.best_by,
            "evaluate.rows_in_training": recipe.evaluate.rows_in_training,
        }
        for path, value in needing.items():
            if value is not None:
                yield path, "looks at evaluations during training, and train.evaluate_every is never"


def _checkpointing(recipe: Recipe, given: Given) -> RuleProblem:
    for knob in ("every_layers", "keep_attention"):
        path = f"train.activation_checkpointing_{knob}"
        if asked(recipe, given, path) and not recipe.train.activation_checkpointing:
            yield path, "needs train.activation_checkpointing: true; without it no layer is recomputed"
    if recipe.train.activation_offloading and not recipe.train.activation_checkpointing:
        yield (
            "train.activation_offloading",
            "needs train.activation_checkpointing: true; what waits on the host is what goes into recomputed "
            "layers",
        )


def _tiles(recipe: Recipe, given: Given) -> RuleProblem:
    adapter = recipe.adapter
    if recipe.train.mlp_tile_tokens is None:
        return
    missing = tiles_need(
        method=adapter.method,
        dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        layers=adapter.layers,
    )
    if missing:
        yield "train.mlp_tile_tokens", f"needs {'; and '.join(missing)}. Change that, or remove this"


def tiles_need(
    *, method: str, dropout: float, target_modules: str | Sequence[str], layers: object
) -> list[str]:
    """What an adapter lacks for MLPs in tiles, which the toolkit's own kernels compute, with LoRA on each."""
    if method not in ("lora", "qlora"):
        return [f"adapter.method lora or qlora (it is {method})"]
    named = GATED_MLP if isinstance(target_modules, str) else set(map(last_part, target_modules))
    absent = sorted(GATED_MLP - named)
    needs = {
        "adapter.dropout: 0.0": dropout > 0,
        f"{' and '.join(absent)} in adapter.target_modules": bool(absent),
        "no adapter.layers: LoRA on every layer's MLP": layers is not None,
    }
    return [what for what, lacks in needs.items() if lacks]


def _sequence_parallel(recipe: Recipe, given: Given) -> RuleProblem:
    path = "train.sequence_parallel_size"
    if recipe.train.sequence_parallel_size == 1:
        return
    if recipe.data.pack_length_tokens is None:
        yield path, "cuts packs among processes, and rows aren't packed; set data.pack_length_tokens"
    if recipe.objective.kind != "supervised" or recipe.model.classifies:
        yield (
            path,
            "is for objective supervised without a head: others compare complete documents; remove this",
        )
    if recipe.train.neftune_alpha is not None:
        yield (
            path,
            "cuts documents, and train.neftune_alpha draws noise for complete ones; remove one of the two",
        )


RULES: tuple[Callable[[Recipe, Given], RuleProblem], ...] = (
    _length,
    _batches,
    _schedule,
    _optimizer,
    _rates,
    _weights_dtype,
    _base_arithmetic,
    _intervals,
    _checkpointing,
    _sequence_parallel,
    _tiles,
)
