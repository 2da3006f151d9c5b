"""LLaMA-Factory's YAML, with dataset_info.json beside its data."""

from typing import Any

from finetune.conversion.base import TRAINER_DEFAULTS, Tool, source, split_names
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, truth
from finetune.conversion.preference import refused
from finetune.conversion.reading import read_json
from finetune.conversion.tools.llamafactory_preference import columns_of, judged, objective, reward_model

OWN_TEMPLATES = ("default", "fewshot", "empty", "vanilla")
FORMS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "messages"}
STAGES = {"sft": "alpaca", "pt": "text", "dpo": "preference", "kto": "feedback", "rm": "preference"}
"""The stages that are converted, with the form of rows where no dataset_info.json says it."""
HOLDS = {"preference": "preferences (ranking: true)", "feedback": "judged answers (a column kto_tag)"}
LEARNS = {"": "answers", "preference": "pairs", "feedback": "judged answers"}
COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "system": "system"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "messages": {"messages": "messages", "system": "system", "tools": "tools"},
}


def prepare(given: Given) -> None:
    """alpha is twice the rank where it isn't written; pre-training packs."""
    rank = given.value("lora_rank", 8)
    given.add_defaults({"lora_alpha": 2 * rank if isinstance(rank, int) else 16})
    if given.value("stage") == "pt":
        given.add_defaults({"packing": True})


def convert(given: Given, draft: Draft) -> None:
    """The stage, the data sets of dataset_info.json, templates and packing."""
    stage = given.take("stage")
    name = "sft" if stage is None else str(stage.value)
    if stage is not None and name not in STAGES:
        raise refused(stage, name)
    draft.carried(stage, "data.train.0.format" if name == "pt" else "objective.kind")
    pretraining = name == "pt"
    if name == "dpo":
        objective(given, draft, keeps_dropout=False)
    elif stage is not None and name in ("kto", "rm"):
        (judged if name == "kto" else reward_model)(given, draft, stage)
    _packing(given, draft)
    template = given.get("template")
    if template is not None and template.value in OWN_TEMPLATES:
        given.take("template")
        draft.drop(
            template, f"LLaMA-Factory's own template {template.value}: write it as model.chat_template"
        )
    if not pretraining:
        draft.put("data.over_length", "truncate_end", "LLaMA-Factory cuts rows at cutoff_len")
    samples = given.take("max_samples")
    form = STAGES[name]
    _sources(given, draft, "dataset", "data.train", form, samples)
    _sources(given, draft, "eval_dataset", "data.evaluation.sources", form, samples)
    draft.carried(samples, "data.train.0.max_rows")
    draft.carried(given.take("dataset_dir"), "data.train")


def _packing(given: Given, draft: Draft) -> None:
    """Packs see their documents apart with neat_packing alone."""
    packing, neat = given.get("packing"), given.get("neat_packing")
    neat_on = neat is not None and truth(neat)
    if neat_on and neat is not None:
        given.take("packing")
        draft.note("packing", neat)
        given.take("neat_packing")
        draft.carried(packing, "data.pack_length_tokens")
    elif packing is not None and truth(packing):
        draft.put("data.attention", "leaky", f"{draft.comment(packing)}: documents of a pack see one another")
        if neat is not None:
            given.take("neat_packing")
            draft.carried(neat, "data.attention")


def _sources(given: Given, draft: Draft, key: str, place: str, form: str, samples: GivenKey | None) -> None:
    entry = given.take(key)
    if entry is None or entry.off:
        return
    folder = str(given.value("dataset_dir", "data"))
    folders = [
        given.file.parent / folder,
        given.file.parent,
        *(parent / folder for parent in given.file.parents),
    ]
    info_file = next(
        (path / "dataset_info.json" for path in folders if (path / "dataset_info.json").is_file()), None
    )
    info = read_json(info_file) if info_file else {}
    unknown = []
    for index, name in enumerate(split_names(entry)):
        here = f"{place}.{index}"
        known = info.get(name) if isinstance(info, dict) else None
        if isinstance(known, dict) and info_file is not None:
            _known(draft, here, entry, known, str(info_file.parent), form)
        else:
            unknown.append(name)
            at = name if "/" in name else f"{folder}/{name}.json"
            source(draft, here, entry, name=at, tell=False, form=form)
        if samples is not None and not samples.off:
            draft.put(f"{here}.max_rows", samples.value, samples)
    draft.carried(entry, place)
    if unknown:
        why = f"dataset_info.json, which says what {', '.join(unknown)} is, isn't here; {form} is assumed"
        draft.otherwise(entry, why, place, changes=True)


def _known(draft: Draft, place: str, entry: GivenKey, known: dict[str, Any], folder: str, asks: str) -> None:
    """A data set as dataset_info.json describes it; `asks` is the form of rows that the stage reads."""
    form = FORMS.get(str(known.get("formatting", "alpaca")), "auto")
    tags, columns = known.get("tags") or {}, known.get("columns") or {}
    if any(column in columns for column in ("images", "videos", "audios")):
        raise entry.refused("the data set has images, videos or sounds; rows of text are trained on here")
    holds = "preference" if known.get("ranking") else "feedback" if columns.get("kto_tag") else ""
    wanted = asks if asks in HOLDS else ""
    if holds != wanted:
        has = HOLDS[holds] if holds else f"no {HOLDS[wanted]}"
        raise entry.refused(f"the data set holds {has}, and this training learns from {LEARNS[wanted]}")
    if form == "sharegpt" and tags.get("role_tag", "from") == "role":
        form = "messages"
    if asks in HOLDS:
        mapped = columns_of(form, asks, columns)
        form = asks
    else:
        form = asks if asks == "text" else form
        ours = {"text": {"prompt": "text"}}.get(form, COLUMNS.get(form, {}))
        mapped = {
            ours[name]: column for name, column in columns.items() if name in ours and ours[name] != column
        }
    more: dict[str, Any] = {"columns": mapped, "split": known.get("split"), "config": known.get("subset")}
    if known.get("num_samples"):
        more["sample_rows"] = known["num_samples"]
    name = known.get("hf_hub_url") or known.get("ms_hub_url")
    if name is None:
        file = str(known.get("file_name") or known.get("script_url") or "")
        name = file if file.startswith("/") else f"{folder}/{file}"
    source(draft, place, entry, name=name, tell=False, form=form, **more)


TOOL = Tool(
    name="llamafactory",
    title="LLaMA-Factory",
    marks=(
        "finetuning_type",
        "cutoff_len",
        "stage",
        "lora_target",
        "dataset_dir",
        "template",
        "quantization_bit",
        "neat_packing",
        "mask_history",
        "train_on_prompt",
        "preprocessing_num_workers",
        "val_size",
    ),
    convert=convert,
    prepare=prepare,
    defaults={
        **TRAINER_DEFAULTS,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "cutoff_len": 2048,
        "double_quantization": True,
        "disable_gradient_checkpointing": False,
    },
)
