"""What a run is built from, before any weight is loaded: base, tokenizer, data, objective; each refused
where it can't be trained on."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.preparation import PreparedData
from data_prep.tokenizers.tokens import check_ids
from finetune.data import prepare_data, tokenizer_for
from finetune.engines.group import this_group
from finetune.engines.registry import current
from finetune.errors import ModelError
from finetune.evaluation.rewards import Rewards
from finetune.models.adapters.adapter import (
    check_targets,
    continue_adapter,
    continued_folder,
    grow_embeddings,
)
from finetune.models.architectures import family_of
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import MASK, read_config, read_json
from finetune.models.bases.locate import Base, resolve_base
from finetune.models.bases.pruned import is_pruned
from finetune.models.bases.shapes import adapted_layers, check_weights
from finetune.models.bases.written import refuse_changed
from finetune.models.device import Precision, choose_device, choose_precision
from finetune.models.kernels.fp8 import refuse_fp8
from finetune.models.kernels.install import check_tiles
from finetune.models.kernels.sequence_parallel import refuse_unsplittable
from finetune.models.load import skeleton
from finetune.models.stored_quantization import check_trainable
from finetune.objectives import Objective, objective_of
from finetune.objectives.grpo import Grpo
from finetune.recipe.heads import classifies
from finetune.recipe.lock import CURRENT_RULES, Rules
from finetune.recipe.rules.evaluation import labels_of
from finetune.recipe.schema import Recipe
from finetune.runs.folder import ADAPTER_NOTES
from finetune.scoring.measured import Question
from finetune.training.arguments import optimizer_name
from finetune.training.company import Member
from finetune.training.prompts import prompts_of
from finetune.training.reference import check_reference
from finetune.training.teacher import check_teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What is there before any weight is loaded."""

    base: Base
    tokenizer: PreTrainedTokenizerFast
    data: PreparedData
    precision: Precision
    objective: Objective
    allow_code: frozenset[str] = frozenset()
    """SHA-256 of files that format python may run; from the command line only."""
    rules: Rules = CURRENT_RULES
    """How the run carries its recipe out: a resumed one as it was started."""
    teacher: Mapping[str, str] = field(default_factory=dict)
    """What a distillation's teacher is, as Base.fingerprint says it; nothing where it has none of its own."""
    reference: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of an adapter that the steps are measured from; nothing where there is none."""
    member: Member | None = None
    """Of a company of runs that train together; None for a run alone."""
    asking: "Asking | None" = None
    """For an objective that draws answers, some or all; else None."""


@dataclass(frozen=True)
class Asking:
    """What rows ask a model that learns from its own answers, and what those are worth."""

    questions: Sequence[Question]
    """Of the rows to train on."""
    evaluation: Sequence[Question] = ()
    """Of those to evaluate on, where their answers are rewarded."""
    rewards: Rewards | None = None
    """None where a teacher judges them."""


def build_inputs(recipe: Recipe, *, rules: Rules | None = None, allow_code: Collection[str] = ()) -> Inputs:
    """Base, tokenizer and prepared data. Raises ModelError or DataError where the recipe can't be
    honoured."""
    rules = rules or CURRENT_RULES
    optimizer_name(recipe.train.optimizer)
    engine = current()
    problem = engine.problem(recipe)
    if problem is not None:
        raise ModelError(f"{engine.name} can't be used with {problem}")
    uneven = recipe.train.uneven_over(this_group().world_size)
    if uneven is not None:
        raise ModelError(uneven)
    precision = choose_precision(recipe.train.arithmetic)
    base = resolve_base(recipe.model)
    config = load_config(base, recipe.model.rope_scaling)
    if recipe.train.sequence_parallel_size > 1:
        refuse_unsplittable(config, recipe.train.sequence_parallel_size)
    stored = _check_stored(recipe, base)
    pruned = is_pruned(base.folder, recipe.adapter, engine)
    if recipe.train.base_arithmetic == "fp8":
        refuse_fp8(config.model_type, choose_device(), precision, "pruned" if pruned else stored)
    if recipe.train.mlp_tile_tokens is not None:
        check_tiles(config.model_type, pruned)
    if pruned:
        logger.info(f"the base is pruned: its mask applies to the update ({MASK})")
    # What transformers or peft would refuse after the data are prepared is refused before.
    described = skeleton(base, rope_scaling=recipe.model.rope_scaling, head=recipe.model.head)
    if recipe.adapter.method != "full":
        check_targets(described, recipe.adapter)
        adapted_layers(recipe.adapter, config.num_hidden_layers)
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise ModelError(
            f"{base.folder}: its config.json gives max_position_embeddings {positions!r}; expected a whole "
            "number."
        )
    if recipe.data.attended_tokens > positions:
        leaky = recipe.data.attention == "leaky"
        what = "data.pack_length_tokens is" if leaky else "data.max_length_tokens is"
        raise ModelError(
            f"{what} {recipe.data.attended_tokens}, but this base has {positions} "
            "positions. Lower it, or set model.rope_scaling."
        )
    tokenizer = tokenizer_for(recipe.model, None, base.folder, preparation=rules.preparation)
    check_ids(tokenizer, config.vocab_size)
    beyond = untrained_tokens(tokenizer, config.vocab_size, recipe.model.new_tokens)
    if beyond:
        names = ", ".join(beyond[:5]) + (" ..." if len(beyond) > 5 else "")
        logger.warning(
            f"for {len(beyond)} of the tokenizer's tokens the base's embedding has no row ({names}). Rows "
            "are added, and not trained; name the tokens in model.new_tokens where your data use them."
        )
    if recipe.adapter.continue_from is not None:
        _check_continued(recipe, base, described, tokenizer)
    objective = objective_of(recipe)
    reference = check_reference(objective, base, tokenizer, rules.preparation)
    teacher = check_teacher(objective, base, tokenizer)
    data = prepare_data(recipe, tokenizer, allow_code=allow_code)
    made = Inputs(
        base, tokenizer, data, precision, objective, frozenset(allow_code), rules, teacher, reference
    )
    if not recipe.objective.draws:
        return made
    questions, held_out = prompts_of(recipe, data, tokenizer, positions=positions)
    if not isinstance(objective, Grpo):
        return replace(made, asking=Asking(questions))
    rewards = Rewards(
        objective.options.rewards, labels_of(recipe), precision=precision, allow_code=allow_code
    )
    rewards.check([*questions, *held_out])
    return replace(made, asking=Asking(questions, held_out, rewards))


def _check_stored(recipe: Recipe, base: Base) -> str | None:
    """How the base is stored quantised; None where it isn't.

    Raises ModelError where its weights don't fit its config.json, or can't be trained on as they are stored.
    """
    config = read_config(base.folder)
    if family_of(config.get("model_type")) is not None:
        # Another head than the recipe's is refused for what it is, once the base is described.
        check_weights(base.folder, config, predicts=not (recipe.model.classifies or classifies(config)))
    stored = check_trainable(config, recipe.adapter, base.identity.get("name", str(base.folder)))
    if stored is None:
        return None
    engine = current()
    if engine.takes_over:
        raise ModelError(
            f"model.base {base.identity['name']} is stored quantised ({stored}), and {engine.name} can't cut "
            "up weights that are stored so: take the unquantised base with adapter.method: qlora, or "
            "--launch ddp."
        )
    logger.info(
        f"the base is stored in {stored} by bitsandbytes: the adapter is trained beside it as it is (QLoRA)"
    )
    return stored


def _check_continued(
    recipe: Recipe, base: Base, described: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Say where the adapter that is continued was trained on another base. Raises ModelError where it doesn't
    fit this one, or is not what its run wrote.

    `described` is the base without its weights; the adapter is put on it.
    """
    grow_embeddings(described, len(tokenizer))
    continue_adapter(described, recipe.adapter, new_token_ids(recipe, tokenizer))
    folder = continued_folder(recipe.adapter)
    refuse_changed(folder)
    if not (folder / ADAPTER_NOTES).is_file():
        return
    then, now = read_json(folder / ADAPTER_NOTES).get("base"), base.fingerprint()
    if isinstance(then, dict) and then.get("sha256") != now.get("sha256"):
        logger.warning(
            f"adapter.continue_from {folder} was trained on another base than model.base: {then.get('name')} "
            f"with SHA-256 {then.get('sha256')}, and this one has {now.get('sha256')}"
        )


def untrained_tokens(tokenizer: PreTrainedTokenizerFast, rows: int, new_tokens: Collection[str]) -> list[str]:
    """The tokens, by id, that lie beyond an embedding of so many rows and aren't among those that are
    trained."""
    found = (
        (index, token)
        for token, index in tokenizer.get_vocab().items()
        if index >= rows and token not in new_tokens
    )
    return [token for _, token in sorted(found)]


def new_token_ids(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids of the tokens that the recipe adds."""
    return list(map(cast(Any, tokenizer).convert_tokens_to_ids, recipe.model.new_tokens))


def pad_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that fills up rows."""
    return int(tokenizer.pad_token_id)
