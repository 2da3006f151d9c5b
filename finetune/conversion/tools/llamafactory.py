"""LLaMA-Factory's YAML, with dataset_info.json beside its data."""

from finetune.conversion.base import TRAINER_DEFAULTS, Tool
from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, truth
from finetune.conversion.preference import refused
from finetune.conversion.tools.llamafactory_data import sources
from finetune.conversion.tools.llamafactory_preference import judged, objective, reward_model

OWN_TEMPLATES = ("default", "fewshot", "empty", "vanilla")
STAGES = {"sft": "alpaca", "pt": "text", "dpo": "preference", "kto": "feedback", "rm": "preference"}
"""The stages that are converted, with the form of rows where no dataset_info.json says it."""


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
    sources(given, draft, "dataset", "data.train", form, samples)
    sources(given, draft, "eval_dataset", "data.evaluation.sources", form, samples)
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
