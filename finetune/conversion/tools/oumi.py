"""oumi's YAML: model, data, training, peft."""

from dataclasses import replace
from typing import Any

from finetune.conversion.base import TRAINER_DEFAULTS, Tool, source
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, truth
from finetune.conversion.preference import refused
from finetune.conversion.tools.trl_preference import form_of, preferences

FORMS = {
    "text_sft": "messages",
    "text_sft_jsonl": "messages",
    "PromptResponseDataset": "prompt_completion",
    "yahma/alpaca-cleaned": "alpaca",
    "tatsu-lab/alpaca": "alpaca",
    "HuggingFaceDataset": "auto",
}
COMPLETIONS = ("text_completions_only_with_padding",)


def prepare(given: Given) -> None:
    """The defaults of peft where there is an adapter; the trainer's own learning rate."""
    if truth_of(given, "training.use_peft"):
        given.add_defaults(
            {
                "peft.lora_r": 8,
                "peft.lora_alpha": 8,
                "peft.lora_dropout": 0.0,
                "peft.use_bnb_nested_quant": False,
            }
        )
    if truth_of(given, "training.use_peft") and not given.under("peft.lora_target_modules"):
        given.add_defaults({"peft.lora_target_modules": ["q_proj", "v_proj"]})


def truth_of(given: Given, key: str) -> bool:
    """A switch that may not be there."""
    entry = given.get(key)
    return entry is not None and truth(entry)


def convert(given: Given, draft: Draft) -> None:
    """The trainer's type, data sets, what is learned."""
    kind = given.take("training.trainer_type")
    if kind is not None:
        name = str(kind.value).upper()
        if name in ("TRL_DPO", "TRL_KTO"):
            preferences(given, draft, name[4:].lower(), TOOL.name, "training.trainer_kwargs.")
        elif name not in ("TRL_SFT", "HF", "OUMI"):
            raise refused(kind, name.removeprefix("TRL_"))
        draft.carried(kind, "objective.kind")
    weights = given.get("model.load_pretrained_weights")
    if weights is not None and not truth(weights):
        raise weights.refused("training from random weights is not here")
    adapter = given.take("training.use_peft")
    on = adapter is not None and truth(adapter)
    draft.put("adapter.method", "lora" if on else "full", adapter or "oumi's default of training.use_peft")
    draft.carried(adapter, "adapter.method")
    quantised, bits = given.take("peft.q_lora"), given.take("peft.q_lora_bits")
    if quantised is not None and truth(quantised) and on:
        found = bits or GivenKey("peft.q_lora_bits", 4, given.shown)
        draft.note("bits", replace(quantised, value=int(found.value)))
        draft.carried(quantised, "adapter.method")
    elif quantised is not None:
        draft.carried(quantised, "adapter.method", "not quantised")
    draft.carried(bits, "adapter.method")
    dtype = given.get("model.torch_dtype_str")
    if not on and dtype is not None and dtype.value in ("bfloat16", "bf16"):
        draft.put("train.weights_dtype", "bf16", dtype)
    _data(given, draft, "train", "data.train")
    _data(given, draft, "validation", "data.evaluation.sources")
    _trainer_arguments(given, draft)
    enabled = truth_of(given, "training.enable_wandb")
    board = given.take("training.enable_tensorboard")
    if board is not None and truth(board) and not enabled:
        draft.carry(board, "tracking.tracker", "tensorboard")
    elif board is not None:
        draft.carried(board, "tracking.tracker")
    steps = given.get("training.save_steps")
    epoch = given.take("training.save_epoch")
    if epoch is not None:
        if truth(epoch):
            draft.put("train.save_every", "1 epoch", epoch)
        draft.carried(epoch, "train.save_every")
    if steps is not None and steps.off and not (epoch is not None and truth(epoch)):
        draft.put("train.save_every", "never", given.take("training.save_steps") or steps)
        draft.carried(steps, "train.save_every")


def _trainer_arguments(given: Given, draft: Draft) -> None:
    """training.trainer_kwargs and the like: passed on to the trainer, which has the same names."""
    template = given.get("model.chat_template")
    if template is not None and isinstance(template.value, str) and template.value == "default":
        given.take("model.chat_template")
        draft.otherwise(template, "the tokenizer's own template", "model.chat_template", changes=True)
    length = given.take("training.trainer_kwargs.max_seq_length") or given.take(
        "training.trainer_kwargs.max_length"
    )
    if length is not None:
        if "model.model_max_length" in given:
            draft.carried(length, "data.max_length_tokens")
        else:
            draft.note("length", length)


def _data(given: Given, draft: Draft, part: str, place: str) -> None:
    prefix = f"data.{part}"
    pack = given.take(f"{prefix}.pack")
    collator, target = given.take(f"{prefix}.collator_name"), given.take(f"{prefix}.train_target")
    forms = []
    for index, dataset in enumerate(given.items(f"{prefix}.datasets")):
        forms.append(_dataset(given, draft, dataset, f"{place}.{index}"))
    for entry in (collator, target):
        draft.carried(entry, "data.supervise")
    for entry in given.take_below(prefix):
        name = entry.key.rpartition(".")[2]
        if name in (
            "seed",
            "use_async_dataset",
            "use_torchdata",
            "trust_remote_code",
            "transform_num_workers",
            "target_col",
            "processor_name",
            "return_tensors",
            "return_conversations",
            "return_conversations_format",
            "shuffle_buffer_size",
        ):
            draft.otherwise(entry, "rows are prepared and ordered by train.seed", "train.seed")
        elif name == "stream" and part == "train":
            draft.note("streaming", entry)
        elif name == "shuffle":
            draft.otherwise(entry, "rows are shuffled anyway", "data.shuffle")
        elif name in ("instruction_template", "response_template", "process_individually"):
            draft.otherwise(entry, "turns are found by the chat template", "data.supervise")
        elif name == "mixture_strategy" or entry.off:
            draft.carried(entry, place)
        else:
            draft.drop(entry, "no counterpart for a data set's own key")
    if part != "train":
        draft.carried(pack, "data.pack_length_tokens")
        return
    if pack is not None:
        draft.note("packing", pack)
        if truth(pack):
            draft.put("data.attention", "leaky", f"{pack.key}: documents of a pack see one another")
    only = (collator is not None and collator.value in COMPLETIONS) or target is not None
    if collator is not None and "vision" in str(collator.value):
        raise collator.refused("a model that sees: text alone is trained on here")
    if target is not None and "FINAL" in str(target.value).upper():
        draft.put("data.supervise", "last", target)
    elif forms and set(forms) != {"text"}:
        draft.put(
            "data.supervise",
            "assistant" if only else "all",
            collator if only and collator else "oumi learns whole conversations",
        )
    if "data.over_length" not in draft.values:
        draft.put("data.over_length", "truncate_end", "oumi cuts rows at model_max_length")


def _dataset(given: Given, draft: Draft, dataset: str, place: str) -> str:
    name = given.take(f"{dataset}.dataset_name")
    if name is None:
        raise given.refused(f"{dataset} has no dataset_name")
    file, split, subset = (given.take(f"{dataset}.{key}") for key in ("dataset_path", "split", "subset"))
    count, share = given.take(f"{dataset}.sample_count"), given.take(f"{dataset}.mixture_proportion")
    kwargs = {
        key: given.take(f"{dataset}.dataset_kwargs.{key}")
        for key in (
            "hf_dataset_path",
            "prompt_column",
            "response_column",
            "seq_length",
            "limit",
            "assistant_only",
        )
    }
    kind = draft.value("objective.kind")
    form = form_of(kind) if kind else FORMS.get(str(name.value), "auto")
    if not kind and (
        "fineweb" in str(name.value).lower()
        or "pretrain" in str(name.value).lower()
        or "/c4" in str(name.value)
    ):
        form = "text"
    inner = kwargs["hf_dataset_path"]
    at = inner or file or name
    columns = {
        ours: str(entry.value)
        for ours, entry in (("prompt", kwargs["prompt_column"]), ("completion", kwargs["response_column"]))
        if entry is not None and entry.value != ours
    }
    more: dict[str, Any] = {"columns": columns if form == "prompt_completion" else {}}
    if count is not None and not count.off:
        more["sample_rows"] = count.value
    if kwargs["limit"] is not None:
        more["max_rows"] = kwargs["limit"].value
    if share is not None and not share.off:
        more["share"] = share.value
    source(
        draft,
        place,
        at,
        form=form,
        split=split.value if split else None,
        config=subset.value if subset else None,
        **more,
    )
    for entry in (name, file, split, subset, count, share, *kwargs.values()):
        if entry is not None and entry is not at:
            draft.carried(entry, place)
    if form == "auto" and at is name:
        draft.otherwise(
            name,
            f"{name.value} is read as format auto",
            f"{place}.format",
            changes=False,
        )
    return form


TOOL = Tool(
    name="oumi",
    title="oumi",
    marks=(
        "model.model_name",
        "training.trainer_type",
        "data.train.datasets.0.dataset_name",
        "training.use_peft",
    ),
    convert=convert,
    prepare=prepare,
    interpolates=True,
    defaults={
        **{f"training.{key}": value for key, value in TRAINER_DEFAULTS.items() if key != "optim"},
        "training.optimizer": "adamw_torch",
        "training.num_train_epochs": 3,
        "training.logging_steps": 50,
        "model.model_max_length": None,
    },
)
