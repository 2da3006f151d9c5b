"""Rules for the model and the adapter, and what training needs of the rest. Each is a small
function; RULES lists them. No file is looked at."""

import re
from collections.abc import Callable
from pathlib import Path

from finetune.models.architectures import last_part, linear_layers
from finetune.models.architectures.base import EMBEDDING, VOCABULARY
from finetune.recipe.given import Given, RuleProblem, asked, near
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.adapter import EVERY_ADAPTER, LORA_ONLY, PEFT_KEYS, AdapterSection
from finetune.recipe.schema.every import NEVER


def _needs_evaluation(recipe: Recipe, given: Given) -> RuleProblem:
    if recipe.data.evaluates or "data.evaluation" in given:
        return
    needing = {
        "train.evaluate_every": recipe.train.evaluate_every if recipe.train.evaluate_every != NEVER else None,
        "train.early_stopping": recipe.train.early_stopping,
        "evaluate.max_rows": recipe.evaluate.max_rows,
        "evaluate.metrics": recipe.evaluate.metrics or None,
    }
    for path, value in needing.items():
        if value is not None:
            yield (
                path,
                "needs rows to evaluate on; add data.evaluation (fraction: 0.05, rows: 100, or sources)",
            )


def _early_stopping(recipe: Recipe, given: Given) -> RuleProblem:
    train = recipe.train
    if train.early_stopping and train.evaluate_every is None and "train.evaluate_every" not in given:
        yield (
            "train.early_stopping",
            "needs train.evaluate_every: it judges by the evaluation loss during training",
        )


def _full(recipe: Recipe, given: Given) -> RuleProblem:
    if recipe.adapter.method != "full":
        return
    for knob in LORA_ONLY:
        if asked(recipe, given, f"adapter.{knob}"):
            yield (
                f"adapter.{knob}",
                "method full trains all weights and has no adapter; remove this, or use lora or qlora",
            )


def _by_peft(recipe: Recipe, given: Given) -> RuleProblem:
    """What methods take whose layers are peft's own, and what was shown of them."""
    adapter, train = recipe.adapter, recipe.train
    if not adapter.by_peft:
        if asked(recipe, given, "adapter.block_size") and adapter.method != "full":
            yield (
                "adapter.block_size",
                f"only method oft rotates blocks; this one is {adapter.method}. Remove it",
            )
        return
    known = PEFT_KEYS[adapter.method] | EVERY_ADAPTER
    for knob in LORA_ONLY:
        if knob not in known and asked(recipe, given, f"adapter.{knob}"):
            taken = ", ".join(sorted(known - {"method"}))
            takers = (
                "qlora" if "quantization" in knob else "lora",
                *(method for method, keys in PEFT_KEYS.items() if knob in keys),
            )
            yield (
                f"adapter.{knob}",
                f"method {adapter.method} takes {taken}; remove this, or take {' or '.join(takers)}",
            )
    vocabulary = _vocabulary_targets(adapter)
    if vocabulary:
        yield (
            "adapter.target_modules",
            f"method {adapter.method} is for the layers' linear modules; remove {' and '.join(vocabulary)}",
        )
    for path, value in {
        "model.head": recipe.model.classifies,
        "model.new_tokens": recipe.model.new_tokens,
        "train.base_arithmetic": train.base_arithmetic,
        "train.loraplus_lr_ratio": train.loraplus_lr_ratio,
        "train.riemannian_damping": train.riemannian_damping,
        "train.sequence_parallel_size": train.sequence_parallel_size > 1,
    }.items():
        if value:
            yield path, f"was shown with LoRA alone, and adapter.method is {adapter.method}; remove one"


def _quantization(recipe: Recipe, given: Given) -> RuleProblem:
    adapter = recipe.adapter
    for knob in ("quantization", "double_quantization"):
        if adapter.method == "lora" and asked(recipe, given, f"adapter.{knob}"):
            yield (
                f"adapter.{knob}",
                "only method qlora quantises the base; this one is lora. Set adapter.method: qlora, or "
                "remove this",
            )
    if adapter.quantization == "int8" and asked(recipe, given, "adapter.double_quantization"):
        yield (
            "adapter.double_quantization",
            "int8 has one scale per row, and no second quantisation; remove this",
        )


def _adapter(recipe: Recipe, given: Given) -> RuleProblem:
    adapter = recipe.adapter
    if adapter.method == "full":
        return
    if adapter.continue_from is not None and asked(recipe, given, "adapter.init"):
        yield (
            "adapter.init",
            "the adapter that is continued (adapter.continue_from) has its beginning; remove it",
        )
    odd = [rank for rank in adapter.ranks if rank % 2]
    if adapter.init == "orthogonal" and odd:
        yield (
            "adapter.init",
            f"orthogonal splits the rank in two halves, and rank {odd[0]} is odd; use an even one",
        )
    whole = VOCABULARY & set(map(last_part, adapter.modules_to_save))
    absent = sorted(({last_part(EMBEDDING)} if recipe.model.classifies else VOCABULARY) - whole)
    if whole and absent and recipe.model.new_tokens:
        message = (
            f"model.new_tokens adds rows to embedding and head: name {' and '.join(absent)} as well, or "
            f"leave out {' and '.join(sorted(whole))}, and the new rows alone are trained"
        )
        yield "adapter.modules_to_save", message
    for knob in ("target_modules", "modules_to_save"):
        written = getattr(adapter, knob)
        for index, name in enumerate(() if isinstance(written, str) else written):
            if re.fullmatch("all|all.linear", name.strip().lower()):
                meant = "write target_modules: all-linear, without a list"
                yield f"adapter.{knob}.{index}", f"no model has a module {name!r}; {meant}"
    known = linear_layers()
    targets = known if adapter.target_modules == "all-linear" else adapter.target_modules
    both = sorted(set(adapter.modules_to_save) & set(targets))
    if both:
        message = (
            f"{', '.join(both)} can't be trained in full and have an adapter; remove from here or from "
            "adapter.target_modules"
        )
        yield "adapter.modules_to_save", message
    for knob, names in (
        ("target_modules", targets),
        ("modules_to_save", adapter.modules_to_save),
        ("exclude_modules", adapter.exclude_modules),
    ):
        repeated = sorted({name for name in names if list(names).count(name) > 1})
        if repeated:
            yield f"adapter.{knob}", f"named twice: {', '.join(repeated)}"
        for index, name in enumerate(() if recipe.model.allow_untested else names):
            close = near(last_part(name), (*sorted(known), *sorted(VOCABULARY)))
            if close:
                yield (
                    f"adapter.{knob}.{index}",
                    f"no supported model has a module {name!r}; did you mean {close}?",
                )
        if any(not name.strip() for name in names):
            yield f"adapter.{knob}", "got an empty name"


def _init(recipe: Recipe, given: Given) -> RuleProblem:
    adapter = recipe.adapter
    if adapter.init == "loftq" and adapter.method == "lora":
        yield (
            "adapter.init",
            "loftq starts at what quantisation took from the base: set adapter.method: qlora, or take pissa",
        )
    if adapter.reads_rows:
        yield from _reads_rows(recipe)
    if adapter.starts_at_base and adapter.method == "qlora":
        yield (
            "adapter.init",
            f"{adapter.init} takes its start out of the base before that is quantised, which would be "
            "another base: take loftq, or adapter.method: lora",
        )
    if adapter.starts_at_base and adapter.dropout:
        yield (
            "adapter.dropout",
            f"adapter.init {adapter.init} starts at what it takes out of the base, and dropout would drop "
            "that; remove one",
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if (adapter.starts_at_base or adapter.init == "loftq") and getattr(adapter, key):
            yield f"adapter.{key}", f"adapter.init {adapter.init} gives all modules one rank; remove one"
    computed = adapter.starts_at_base or adapter.reads_rows or adapter.init == "loftq"
    if computed and adapter.use_dora:
        yield "adapter.use_dora", f"DoRA was not shown with adapter.init {adapter.init}; remove one"
    vocabulary = _vocabulary_targets(adapter)
    if computed and vocabulary:
        yield (
            "adapter.target_modules",
            f"adapter.init {adapter.init} is for the layers' linear modules; remove "
            f"{' and '.join(vocabulary)}",
        )


def _reads_rows(recipe: Recipe) -> RuleProblem:
    """What reads rows before the first step."""
    init, objective = recipe.adapter.init, recipe.objective
    if recipe.data.streaming is not None:
        yield (
            "adapter.init",
            f"{init} reads rows before the first step, and a stream is read once; remove one",
        )
    if recipe.train.sequence_parallel_size > 1:
        yield (
            "adapter.init",
            f"{init} reads whole rows, and train.sequence_parallel_size cuts them up; remove one",
        )
    if objective.draws:
        yield "adapter.init", f"{init} reads rows with answers, and this objective draws them; remove one"
    elif init == "lora_ga" and objective.kind != "supervised":
        yield (
            "adapter.init",
            "lora_ga follows the gradients of rows' own answers (objective.kind: supervised); with "
            f"{objective.kind} take corda or eva",
        )


def _vocabulary_targets(adapter: AdapterSection) -> list[str]:
    """The embedding and the head, where they are to have an adapter."""
    return sorted(VOCABULARY & set(map(last_part, adapter.target_modules)))


def _layers(recipe: Recipe, given: Given) -> RuleProblem:
    adapter = recipe.adapter
    if adapter.layers is None:
        return
    if not isinstance(adapter.layers, str):
        repeated = sorted({number for number in adapter.layers if adapter.layers.count(number) > 1})
        if repeated:
            yield "adapter.layers", f"named twice: {', '.join(map(str, repeated))}"
    targets = () if adapter.target_modules == "all-linear" else adapter.target_modules
    for index, name in enumerate(targets):
        if last_part(name) in VOCABULARY:
            yield (
                f"adapter.target_modules.{index}",
                f"{name} is in none of adapter.layers, and would have no adapter; remove one of the two",
            )
        elif "layers." in name:
            yield (
                f"adapter.target_modules.{index}",
                f"{name} names a layer by itself; remove adapter.layers, or write {last_part(name)}",
            )


def _revision(recipe: Recipe, given: Given) -> RuleProblem:
    base = recipe.model.base
    if recipe.model.revision is not None and not (isinstance(base, str) and not Path(base).is_absolute()):
        yield (
            "model.revision",
            "only a hub id has revisions; remove it (a gguf or wheel base is pinned by its sha256)",
        )


def _rope_scaling(recipe: Recipe, given: Given) -> RuleProblem:
    scaling = recipe.model.rope_scaling
    if scaling is None:
        return
    if scaling.type == "linear" and scaling.original_max_length_tokens is not None:
        yield (
            "model.rope_scaling.original_max_length_tokens",
            "only types yarn and llama3 have it; this one is linear",
        )
    factors = {
        "low_frequency_factor": scaling.low_frequency_factor,
        "high_frequency_factor": scaling.high_frequency_factor,
    }
    for name, value in factors.items():
        if scaling.type == "llama3" and value is None:
            yield (
                f"model.rope_scaling.{name}",
                "missing: type llama3 needs low_frequency_factor and high_frequency_factor",
            )
        if scaling.type != "llama3" and value is not None:
            yield f"model.rope_scaling.{name}", f"only type llama3 has it; this one is {scaling.type}"
    low, high = factors.values()
    if scaling.type == "llama3" and low is not None and high is not None and low >= high:
        yield (
            "model.rope_scaling.low_frequency_factor",
            f"got {low:g}, expected less than high_frequency_factor ({high:g})",
        )


def _new_tokens(recipe: Recipe, given: Given) -> RuleProblem:
    tokens = recipe.model.new_tokens
    for index, token in enumerate(tokens):
        if not token.strip():
            yield (
                f"model.new_tokens.{index}",
                f"got {token!r}; a token has at least one character that isn't white space",
            )
        elif token in tokens[:index]:
            yield f"model.new_tokens.{index}", f"{token!r} is named twice"


RULES: tuple[Callable[[Recipe, Given], RuleProblem], ...] = (
    _needs_evaluation,
    _early_stopping,
    _full,
    _by_peft,
    _quantization,
    _adapter,
    _init,
    _layers,
    _revision,
    _rope_scaling,
    _new_tokens,
)
