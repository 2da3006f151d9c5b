"""TRL's command line (`trl sft --config FILE`, or its options in a script), and the alignment handbook, whose
YAML has TRL's keys and a mixture of data sets."""

from typing import Any

from finetune.conversion.base import TRAINER_DEFAULTS, Tool, source, take_all
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, name_list, number, truth
from finetune.conversion.tools.trl_preference import VERBS, form_of, preferences, trainer

DEFAULTS = {
    **TRAINER_DEFAULTS,
    "learning_rate": 2e-5,
    "max_length": 1024,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "use_bnb_nested_quant": False,
    "gradient_checkpointing": True,
    "logging_steps": 10,
}


def prepare(given: Given) -> None:
    """What an older name of a key makes of its default; learning from preferences has a rate of its own."""
    kind = trainer(given)
    if kind != "sft":
        given.add_defaults({"learning_rate": 1e-4 if kind == "reward" else 1e-6})
    if "max_seq_length" in given:
        given.add_defaults({"max_length": given.value("max_seq_length")})
    if not given.under("lora_target_modules"):
        given.add_defaults({"lora_target_modules": ["q_proj", "v_proj"]})


def convert(given: Given, draft: Draft, tool: str = "trl") -> None:
    """The data set, what is learned, and how packs are made."""
    method(given, draft)
    kind = trainer(given)
    _dataset(given, draft, form_of(kind))
    if kind == "sft":
        learned(given, draft)
        packing(given, draft)
        splits = given.value("packing_strategy") == "bfd_split" and "data.attention" not in draft.values
        cut = "split" if splits and given.on("packing") else "truncate_end"
        draft.put(
            "data.over_length", cut, "packing_strategy" if cut == "split" else "TRL cuts rows at max_length"
        )
    else:
        preferences(given, draft, kind, tool)


def method(given: Given, draft: Draft) -> None:
    """use_peft decides; without it all weights are trained."""
    entry = given.take("use_peft")
    if entry is not None and truth(entry):
        draft.carry(entry, "adapter.method", "lora")
    else:
        draft.put("adapter.method", "full", entry or "use_peft is off")
        draft.carried(entry, "adapter.method")


def learned(given: Given, draft: Draft) -> None:
    """Rows are learned whole unless the file says otherwise; of prompts, the completions."""
    assistant, completion = given.take("assistant_only_loss"), given.take("completion_only_loss")
    for entry in (assistant, completion):
        draft.carried(entry, "data.supervise")
    if assistant is not None and truth(assistant):
        draft.put("data.supervise", "assistant", assistant)
    elif completion is not None and truth(completion):
        draft.put("data.supervise", "completion", completion)
    elif completion is None and draft.value("data.train.0.format") == "prompt_completion":
        draft.put("data.supervise", "completion", "TRL learns the completions of prompts alone")
    else:
        draft.put(
            "data.supervise", "all", "TRL learns conversations whole, unless assistant_only_loss is set"
        )


def packing(given: Given, draft: Draft) -> None:
    """Packs see their documents apart only under flash attention there."""
    entry, strategy = given.get("packing"), given.take("packing_strategy")
    if strategy is not None:
        if strategy.value == "wrapped":
            draft.carry(strategy, "data.pack_split", True)
        else:
            draft.carried(strategy, "data.pack_length_tokens")
    on = entry is not None and truth(entry)
    if not on and strategy is not None:
        draft.remove("data.pack_split")
    flash = "flash" in str(given.value("attn_implementation", ""))
    if on and entry is not None and (not flash or (strategy is not None and strategy.value == "wrapped")):
        draft.put(
            "data.attention",
            "leaky",
            f"{draft.comment(entry)} without flash attention: documents see one another",
        )


def _dataset(given: Given, draft: Draft, form: str) -> None:
    entry = given.take("dataset_name")
    config, split, test = (
        given.take(key) for key in ("dataset_config", "dataset_train_split", "dataset_test_split")
    )
    field = given.take("dataset_text_field")
    values = {"config": config.value if config else None, "split": split.value if split else None}
    more = dict[str, Any]()
    if field is not None and field.value not in (None, "text") and form == "auto":
        form, more = "text", {"columns": {"text": field.value}}
    for other in (config, split, field):
        draft.carried(other, "data.train.0")
    if entry is not None and not entry.off:
        source(
            draft, "data.train.0", entry, form=form, config=values["config"], split=values["split"], **more
        )
        evaluates = str(given.value("eval_strategy", "no")).lower() not in ("no", "false")
        if evaluates:
            at = "data.evaluation.sources.0"
            source(
                draft,
                at,
                entry,
                tell=False,
                form=form,
                config=values["config"],
                split=test.value if test else "test",
                **more,
            )
    draft.carried(test, "data.evaluation.sources")
    for index, prefix in enumerate(given.items("datasets")):
        path = given.take(f"{prefix}.path")
        if path is None:
            raise given.refused(f"{prefix} has no path")
        name, split, files = (given.take(f"{prefix}.{key}") for key in ("name", "split", "data_files"))
        columns, share = given.take(f"{prefix}.columns"), given.take(f"{prefix}.fraction")
        where = str(files.value) if files is not None and isinstance(files.value, str) else str(path.value)
        source(
            draft,
            f"data.train.{index}",
            path,
            name=where,
            form=form,
            config=name.value if name else None,
            split=split.value if split else None,
        )
        if share is not None and not share.off:
            draft.drop(share, "a fraction of a source: write sample_rows, the number of rows")
        for other in (name, split, files, columns):
            draft.carried(other, f"data.train.{index}")
    take_all(draft, given, "dataset_kwargs", how="as the format reads it")


TOOL = Tool(
    name="trl",
    title="TRL",
    marks=(
        "dataset_name",
        "use_peft",
        "assistant_only_loss",
        "completion_only_loss",
        "packing_strategy",
        "dataset_train_split",
        "dataset_test_split",
        "use_bnb_nested_quant",
        "chat_template_path",
    ),
    convert=convert,
    prepare=prepare,
    verbs=VERBS,
    defaults=DEFAULTS,
)


def _convert_handbook(given: Given, draft: Draft) -> None:
    """The alignment handbook: the mixture; else as TRL."""
    kind = trainer(given)
    form = "messages" if kind == "sft" else form_of(kind)
    _mixture(given, draft, form)
    _mixer(given, draft, form)
    convert(given, draft, HANDBOOK.name)
    for entry in given.take_below("dataset_kwargs"):
        draft.otherwise(entry, "the tokenizer and its template say it")


def _mixer(given: Given, draft: Draft, form: str) -> None:
    """The older form: shares by data set, and the splits of all of them."""
    splits, configs = given.take("dataset_splits"), given.take("dataset_configs")
    names = ["train"] if splits is None else name_list(splits)
    columns = given.take("columns_to_keep")
    for place, there in (("data.train", "train"), ("data.evaluation.sources", "test")):
        split = next((name for name in names if there in name), None)
        if split is None:
            continue
        for index, (name, entry) in enumerate(_shares(given)):
            here = f"{place}.{index}"
            source(draft, here, entry, name=name, tell=False, form=form, split=split)
            if place == "data.train" and number(entry) < 1:
                draft.put(f"{here}.repeat", number(entry), entry)
    for _, entry in _shares(given):
        given.take(entry.key)
        draft.carried(entry, "data.train")
    for other in (splits, configs, columns):
        draft.carried(other, "data.train")


def _shares(given: Given) -> list[tuple[str, GivenKey]]:
    start = "dataset_mixer."
    return [(key.removeprefix(start), entry) for key, entry in given.entries.items() if key.startswith(start)]


def _mixture(given: Given, draft: Draft, form: str) -> None:
    for index, prefix in enumerate(given.items("dataset_mixture.datasets")):
        place = f"data.train.{index}"
        name = given.take(f"{prefix}.id")
        if name is None:
            raise given.refused(f"{prefix} has no id")
        config, split, columns, weight = (
            given.take(f"{prefix}.{key}") for key in ("config", "split", "columns", "weight")
        )
        source(
            draft,
            place,
            name,
            form=form,
            config=config.value if config and config.value != "default" else None,
            split=split.value if split else None,
        )
        for other in (config, split, columns):
            draft.carried(other, place)
        if weight is not None:
            share = number(weight)
            if share < 1:
                draft.put(
                    f"{place}.repeat",
                    share,
                    f"{weight.key}: a random part of the rows, drawn anew each epoch here",
                )
                draft.otherwise(
                    weight,
                    "the share of the rows that an epoch sees; the same for one epoch",
                    f"{place}.repeat",
                )
            else:
                draft.carried(weight, place)
    seed, held_out = given.take("dataset_mixture.seed"), given.take("dataset_mixture.test_split_size")
    if held_out is not None:
        draft.note("held_out", held_out)
    if seed is not None:
        draft.otherwise(seed, "train.seed draws the rows that are held out", "train.seed")


HANDBOOK = Tool(
    name="alignment-handbook",
    title="the alignment handbook",
    marks=("dataset_mixture.*", "dataset_mixer.*"),
    covers=("trl",),
    convert=_convert_handbook,
    prepare=prepare,
    verbs=VERBS,
    defaults=DEFAULTS,
)
