"""A recipe and its inputs -> live parts, in the order in which they need each other. The only place that
builds them."""

import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback

from data_prep.epoch.stream import Stream
from data_prep.preparation import PreparedData
from data_prep.table.cache_key import tokenizer_sha256
from data_prep.table.documents import Document, DocumentTable
from data_prep.truncation import overlap_of
from finetune.engines.base import Engine
from finetune.engines.group import this_group
from finetune.engines.registry import current
from finetune.engines.single import SINGLE
from finetune.errors import ModelError
from finetune.evaluation.dataset import read_rows
from finetune.models.adapters.adapter import attach, count_parameters, grow_embeddings
from finetune.models.adapters.from_rows import start_from_rows
from finetune.models.adapters.start import original_weights
from finetune.models.architectures import family_of
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import read_config
from finetune.models.bases.pruned import is_pruned
from finetune.models.by_layer import empty_layers
from finetune.models.device import choose_device
from finetune.models.kernels.attention import choose_attention, shares_beginnings
from finetune.models.kernels.fp8 import round_base
from finetune.models.kernels.install import install_fast_path
from finetune.models.kernels.sequence_parallel import split_rows
from finetune.models.load import load_around_layers, load_model
from finetune.models.quantization import is_quantized
from finetune.models.recomputation import recompute_activations
from finetune.models.sharing import sharing_weights
from finetune.objectives.grpo import Grpo
from finetune.recipe.rules.together import common_of
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.every import NEVER
from finetune.recipe.schema.train import TrainSection
from finetune.training.arguments import training_arguments
from finetune.training.batches import Batching, Feed, StreamFeed, TableFeed
from finetune.training.callbacks.epoch_marks import EpochMarks
from finetune.training.drawing import Drawing
from finetune.training.inputs import Asking, Inputs, build_inputs, new_token_ids, pad_token_id
from finetune.training.on_policy import OwnAnswers
from finetune.training.optimization.intervals import intervals_of
from finetune.training.optimization.own_optimizers import own_optimizer
from finetune.training.optimization.parameter_groups import Rates
from finetune.training.optimization.schedule import ceil_product, rate_factor, warmup_steps
from finetune.training.prompts import PromptFeed
from finetune.training.reference import adapter_on, reference_of_steps
from finetune.training.rollouts import Rollouts
from finetune.training.teacher import ask_before, hash_of_answers, load_teacher
from finetune.training.teacher_store import TeacherStore
from finetune.training.trainer import ExactTrainer

logger = logging.getLogger(__name__)


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def build_model(recipe: Recipe, inputs: Inputs) -> torch.nn.Module:
    """The base with the recipe's adapter (or all of its weights) ready to train, on its device."""
    method, engine = recipe.adapter.method, current()
    seed_everything(recipe.train.seed)
    with engine.loading(inputs.precision.name):
        model = load_base(recipe, inputs, engine)
        trained: torch.nn.Module = model
        if isinstance(inputs.objective, Grpo) and recipe.objective.names_reference:
            # Before the base has an adapter: the two have its weights in common.
            inputs.objective.reference_model = adapter_on(sharing_weights(model), inputs.objective.reference)
        if method != "full":
            # The seed again: the adapter's start doesn't depend on what loading the base drew.
            seed_everything(recipe.train.seed)
            new_ids = new_token_ids(recipe, inputs.tokenizer)
            trained = attach(
                model,
                recipe.adapter,
                new_ids,
                classifies=recipe.model.classifies,
                original=original_weights(inputs.base.folder) if recipe.adapter.init == "loftq" else None,
                engine=engine,
            )
            if recipe.adapter.reads_rows:
                if not is_quantized(model):
                    trained = engine.place(trained, choose_device())
                rows, pad = _rows_by_seed(recipe, inputs), pad_token_id(inputs.tokenizer)
                start_from_rows(cast(Any, trained), recipe.adapter, rows, pad)
            install_fast_path(trained, engine, recipe.train.mlp_tile_tokens)
        if recipe.train.activation_offloading and choose_device().type == "cpu":
            logger.info("train.activation_offloading: on the CPU its copies free nothing: this is for GPUs")
        _recompute(recipe.train, trained)
        filling = empty_layers(trained)
        if filling is not None:
            filling.fill(choose_device(), partial(engine.share_layer, precision=inputs.precision.name))
    if not is_quantized(model):
        trained = engine.place(trained, choose_device())
    if recipe.train.base_arithmetic == "fp8":
        logger.info(f"the base multiplies in FP8: {round_base(trained)} linear layers, each rounded once")
    load_teacher(inputs.objective, trained, inputs.precision)
    if inputs.member is not None:
        inputs.member.takes_part(trained, partial(_recompute, recipe.train))
    return trained


def _rows_by_seed(recipe: Recipe, inputs: Inputs) -> Iterator[Document]:
    """The training rows, in an order that the seed draws."""
    order = np.random.default_rng(recipe.train.seed).permutation(len(inputs.data.train))
    return (inputs.data.train[int(row)] for row in order)


def _recompute(train: TrainSection, model: torch.nn.Module) -> None:
    if train.activation_checkpointing:
        recompute_activations(
            model,
            train.activation_checkpointing_every_layers,
            keep_attention=train.activation_checkpointing_keep_attention,
            offload=train.activation_offloading,
        )


def load_base(recipe: Recipe, inputs: Inputs, engine: Engine = SINGLE) -> PreTrainedModel:
    """The base with the loss of the recipe's objective."""
    # Weights that are all trained need float32 for the optimizer's small steps, or an optimizer that rounds
    # them stochastically; autocast still computes in bf16.
    wide = recipe.adapter.method == "full" and recipe.train.weights_dtype == "fp32"
    config = load_config(inputs.base, recipe.model.rope_scaling)
    options: dict[str, Any] = {
        "dtype": torch.float32 if wide else inputs.precision.dtype,
        "quantization": recipe.adapter.base_quantization,
        "rope_scaling": recipe.model.rope_scaling,
        "attention": choose_attention(choose_device(), inputs.precision.dtype, config),
        "head": recipe.model.head,
    }
    load: Callable[[], PreTrainedModel]
    if _fills_layers(recipe, inputs, engine):
        load = partial(load_around_layers, inputs.base, **options, engine=engine)
    else:
        load = partial(
            load_model, inputs.base, **options, rope_by_document=inputs.rules.training >= 2, engine=engine
        )
    model = load() if inputs.member is None else inputs.member.base(load, _common_facts(recipe, inputs))
    if recipe.train.sequence_parallel_size > 1:
        split_rows(model, recipe.train.sequence_parallel_size)
    grow_embeddings(model, len(inputs.tokenizer), engine)
    inputs.objective.prepare_model(model, pad_token_id(inputs.tokenizer))
    inputs.objective.install(model, most_chunks=this_group().most if engine.shards_weights else None)
    return model


def _common_facts(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """The same as they turned out, by content: bases of one name may differ, and of two names be equal."""
    content = {key: value for key, value in inputs.base.fingerprint().items() if key not in ("kind", "name")}
    facts = common_of(recipe) | {
        "model.base": "the one with " + ", ".join(f"{key} {value}" for key, value in content.items()),
        "the tokenizer's vocabulary": tokenizer_sha256(inputs.tokenizer),
        "train.precision": inputs.precision.name,
        "the version of the rules by which it trains": inputs.rules.training,
    }
    if len(inputs.tokenizer) > read_config(inputs.base.folder)["vocab_size"]:
        facts["train.seed, which draws the rows that the embedding lacks"] = recipe.train.seed
    return facts


def _fills_layers(recipe: Recipe, inputs: Inputs, engine: Engine) -> bool:
    """Whether a base that is quantised has its layers filled one by one."""
    adapter, config = recipe.adapter, read_config(inputs.base.folder)
    together = inputs.member is not None and inputs.member.shares_out
    return (
        (together or (engine.fills_layers and adapter.most_sharing >= this_group().world_size))
        and inputs.rules.training >= 2
        and family_of(config.get("model_type")) is not None
        and not config.get("quantization_config")
        and not is_pruned(inputs.base.folder, adapter, engine)
    )


def build_trainer(
    recipe: Recipe,
    inputs: Inputs,
    model: torch.nn.Module,
    *,
    checkpoints: Path,
    evaluate_first: bool,
    callbacks: list[TrainerCallback],
    taught: Mapping[str, TeacherStore] | None = None,
) -> ExactTrainer:
    """The trainer over this process's share of the batches; `taught` is what ask_teacher gave."""
    train, evaluation = recipe.train, _evaluation_documents(recipe, inputs.data)
    feed = build_feed(recipe, inputs)
    total_steps = train.max_steps or _steps_for(train.epochs or 1.0, feed)
    if warmup_steps(train, total_steps) > total_steps:
        logger.warning(
            f"train.warmup_steps is {train.warmup_steps}, and this run has {total_steps} steps: the learning "
            "rate rises to the end, and never reaches train.learning_rate"
        )
    intervals = intervals_of(train, total_steps, partial(_steps_for, feed=feed))
    saves_at_end = train.save_every != NEVER
    arguments = training_arguments(
        train,
        engine=current(),
        precision=inputs.precision,
        total_steps=total_steps,
        intervals=intervals,
        accumulation=feed.batching.accumulation,
        evaluation_batch_size=recipe.evaluate.batch_size,
        evaluates=_evaluates(recipe, inputs.data),
        evaluate_first=evaluate_first,
        checkpoints=checkpoints,
        rules=inputs.rules,
    )
    trainer = ExactTrainer(
        model,
        arguments,
        objective=inputs.objective,
        feed=feed,
        rate_factor=partial(
            rate_factor, train, total_steps, rule=inputs.rules.schedule, falls=intervals.falls
        ),
        evaluation=evaluation,
        keep_checkpoints=train.keep_checkpoints,
        # Evaluating never needs more memory than training did.
        evaluation_tokens=train.micro_batch_size
        * (recipe.data.pack_length_tokens or recipe.data.max_length_tokens),
        group=this_group(),
        engine=current(),
        callbacks=[EpochMarks(intervals, saves_at_end=saves_at_end), *callbacks],
        rates=Rates(train.loraplus_lr_ratio, train.embedding_learning_rate, train.riemannian_damping),
        own_optimizer=own_optimizer(train, model),
        member=inputs.member,
    )
    if inputs.asking is not None:
        trainer.rollouts = _drawing(trainer, inputs, inputs.asking)
    if taught:
        assert isinstance(feed, TableFeed)  # noqa: S101 - the objective's rules refuse streams
        feed.beside = taught["training"].of
        trainer.evaluation_beside = taught["evaluation"].of if "evaluation" in taught else None
        trainer.values_hash = hash_of_answers(taught)
    trainer.evaluation_counterparts = inputs.objective.counterparts(trainer.evaluation)
    try:
        trainer.create_optimizer()
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"train.optimizer {train.optimizer} can't be used here: {' '.join(str(error).split())}"
        ) from error
    return trainer


def _drawing(trainer: ExactTrainer, inputs: Inputs, asking: Asking) -> Drawing:
    """What draws the answers that are learned from."""
    options = inputs.objective.options
    if asking.rewards is None:
        return OwnAnswers(trainer, inputs.tokenizer, options.on_policy)
    assert isinstance(inputs.objective, Grpo)  # noqa: S101 - the one that has rewards
    reference = reference_of_steps(trainer, inputs.objective.reference_model) if options.kl_weight else None
    return Rollouts(trainer, inputs.tokenizer, asking.rewards, asking.evaluation, reference)


def ask_teacher(recipe: Recipe, inputs: Inputs) -> dict[str, TeacherStore]:
    """What the teacher says of rows for training and for evaluation, where it is asked before step 1; nothing
    otherwise. See ask_before."""
    documents = {"training": inputs.data.train}
    if _evaluates(recipe, inputs.data):
        documents["evaluation"] = _evaluation_documents(recipe, inputs.data)
    return ask_before(
        inputs.objective,
        documents,
        base=inputs.base,
        fingerprint=inputs.teacher,
        precision=inputs.precision,
        load_base=partial(load_base, recipe, replace(inputs, member=None)),
        tokenizer=inputs.tokenizer,
        group=this_group(),
    )


def _evaluates(recipe: Recipe, data: PreparedData) -> bool:
    return len(data.evaluation) > 0 and recipe.train.evaluate_every != NEVER


def _evaluation_documents(recipe: Recipe, data: PreparedData) -> DocumentTable:
    most = recipe.evaluate.max_rows
    return data.evaluation[: most * data.documents_per_row if most is not None else None]


def build_feed(recipe: Recipe, inputs: Inputs) -> Feed:
    """This process's share of the batches."""
    train, section, group = recipe.train, recipe.data, this_group()
    # What is computed with others' documents is packed, whatever the recipe says: the losses are the same. So
    # are rows with answers of any length, which would be padded to the longest.
    mixed = inputs.asking is not None and inputs.asking.rewards is None
    packed = section.pack_length_tokens is not None or inputs.member is not None or mixed
    pad = pad_token_id(inputs.tokenizer)
    noise = train.seed if train.neftune_alpha is not None and inputs.rules.training >= 2 else None
    reader, part = divmod(group.rank, train.sequence_parallel_size)
    batching = Batching(
        train.global_batch_size,
        train.micro_batch_size,
        train.readers(group.world_size),
        reader,
        packed,
        pad,
        noise,
        documents_per_row=inputs.objective.encoding.documents_per_row,
        leaky=section.attention == "leaky",
        shares_prompts=_shares_prompts(recipe, inputs, noise),
        part=part,
        parts=train.sequence_parallel_size,
    )
    if section.streaming is not None:
        return StreamFeed(
            Stream(
                section,
                inputs.tokenizer,
                seed=train.seed,
                allow_code=inputs.allow_code,
                encoding=inputs.objective.encoding,
            ),
            batching,
        )
    if inputs.asking is not None:
        drawing = recipe.objective.drawing
        size, passes = drawing["group_size"], drawing["epochs_per_sample"]
        return PromptFeed(
            inputs.data.train,
            inputs.data.packs,
            replace(batching, documents_per_row=size, passes=passes),
            overlap=0,
            questions=inputs.asking.questions,
            longest_answer=drawing["max_new_tokens"],
            fraction=drawing.get("fraction", 1.0),
            seed=train.seed,
        )
    return TableFeed(
        inputs.data.train,
        inputs.data.packs,
        batching,
        overlap=overlap_of(inputs.tokenizer),
        values=inputs.objective.values_per_document,
        counterparts=inputs.objective.counterparts(inputs.data.train),
    )


def _shares_prompts(recipe: Recipe, inputs: Inputs, noise: int | None) -> bool:
    """Whether what the documents of a row begin with is computed once: where attention can, and without
    noise, which each document has of its own."""
    config = load_config(inputs.base, recipe.model.rope_scaling)
    attention = choose_attention(choose_device(), inputs.precision.dtype, config)
    several = inputs.objective.encoding.documents_per_row > 1 or recipe.objective.draws
    return several and noise is None and shares_beginnings(attention, config)


def _steps_for(epochs: float, feed: Feed) -> int:
    """Optimizer steps of so many epochs; the recipe's rules see to it that a stream is given steps."""
    assert isinstance(feed, TableFeed)  # noqa: S101 - see above
    whole = int(epochs)
    steps = sum(feed.steps_of(epoch) for epoch in range(whole))
    rest = epochs - whole
    return max(1, steps + (ceil_product(rest, feed.steps_of(whole)) if rest > 1e-9 else 0))


def deep_check(recipe: Recipe, *, allow_code: Collection[str] = ()) -> list[str]:
    """What `finetune check --deep` says: everything that training does before its first step. Raises like
    training."""
    inputs = build_inputs(recipe, allow_code=allow_code)
    if recipe.evaluate.metrics:
        positions = load_config(inputs.base, recipe.model.rope_scaling).max_position_embeddings
        read_rows(recipe, inputs.data, inputs.tokenizer, positions=positions, most=recipe.evaluate.max_rows)
    model = build_model(recipe, inputs)
    trainable, total = count_parameters(model, current())
    return [
        f"base       {inputs.base.identity['name']}",
        f"precision  {inputs.precision.name} ({inputs.precision.reason})",
        f"trainable  {trainable:,} of {total:,} parameters",
        *inputs.data.report.lines(),
    ]
