"""Axolotl's `rl`: which of TRL's trainers it is, and its data sets of pairs."""

from collections.abc import Mapping
from typing import Any

from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, truth
from finetune.conversion.judged import KTO, REWARD, kto, reward
from finetune.conversion.preference import (
    CPO,
    DPO,
    ORPO,
    asked,
    cpo,
    dpo,
    orpo,
    per_token,
    refused,
    without_dropout,
)

DPO_NAMES = {
    "beta": "rl_beta",
    "loss_type": "dpo_loss_type",
    "loss_weights": "dpo_loss_weights",
    "label_smoothing": "dpo_label_smoothing",
}
GONE = ("dpo_norm_loss", "rpo_alpha", "dpo_use_logits_to_keep", "dpo_beta", "dpo_generate_during_eval")
"""Keys that it doesn't have since it builds on TRL 0.29: their files are of an earlier one."""
STRATEGIES: Mapping[str, Mapping[str, str]] = {
    "intel": {"prompt": "question"},
    "icr": {"prompt": "input"},
    "default": {},
    "prompt_pairs": {},
    "ultra": {},
    "argilla_chat": {},
    "argilla": {},
}
"""Where the functions of its prompt strategies find the columns of a row of pairs."""
JUDGED: Mapping[str, Mapping[str, str]] = {
    "intel": {"prompt": "question"},
    "argilla_chat": {"messages": "completion"},
    "argilla": {},
    "prompt_pairs": {},
    "ultra": {},
    "default": {},
}
"""The same of judged answers."""
KTO_NAMES = {"desirable_weight": "kto_desirable_weight", "undesirable_weight": "kto_undesirable_weight"}
TEMPLATES = {"chatml": "chatml", "llama3": "llama3"}
"""Strategies that write a template of their own."""
CHATML_PROMPT = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def objective(given: Given, draft: Draft) -> bool:
    """What `rl` asks for, or reward_model; False where neither does. Raises ConvertError for what isn't
    here."""
    steps = given.take("process_reward_model")
    if steps is not None and not steps.off:
        raise refused(steps, steps.key)
    draft.carried(steps, "", "off there")
    ranks = given.take("reward_model")
    if ranks is not None and not ranks.off:
        reward(draft, asked(given, draft, REWARD), ranks)
        without_dropout(given, draft, "lora_dropout")
        draft.carried(given.take("num_labels"), "objective.kind")
        return True
    draft.carried(ranks, "", "off there")
    rl = given.take("rl")
    if rl is None or rl.off:
        draft.carried(rl, "objective.kind", "supervised")
        return False
    name = str(rl.value).lower()
    beta = next((key for key in ("trl.beta", "rl_beta", "dpo_beta") if key in given), "rl_beta")
    if name in ("dpo", "ipo"):
        _dpo(given, draft, rl, name, beta)
    elif name == "orpo":
        beta = beta if beta in given else "orpo_alpha"
        orpo(draft, asked(given, draft, ORPO, {"beta": beta}), rl, learns_prompts=True)
    elif name == "simpo":
        said = asked(given, draft, {key: CPO[key] for key in CPO if key != "loss_type"}, {"beta": beta})
        loss = GivenKey("loss_type", "simpo", given.shown)
        cpo(draft, {**said, "loss_type": loss}, rl)
    elif name == "kto":
        said = asked(
            given, draft, {key: KTO[key] for key in KTO if key != "loss_type"}, KTO_NAMES | {"beta": beta}
        )
        kto(draft, said, rl)
    else:
        raise refused(rl, name)
    without_dropout(given, draft, "lora_dropout")
    whole = given.take("rl_adapter_ref_model")
    draft.carried(whole, "objective.reference", "the model as it is at the start")
    return True


def _dpo(given: Given, draft: Draft, rl: GivenKey, name: str, beta: str) -> None:
    before = any(key in given for key in GONE)
    normalised = given.take("dpo_norm_loss")
    said = dict(asked(given, draft, DPO, {**DPO_NAMES, "beta": beta}))
    if name == "ipo":
        said["loss_type"] = GivenKey(rl.key, "ipo", rl.shown, rl.line)
    elif not said["loss_type"].written:
        said["loss_type"] = GivenKey(rl.key, "sigmoid", rl.shown, rl.line)
    if said["loss_type"].key != rl.key:
        draft.carried(rl, "objective.kind")
    dpo(draft, said, smooths=before)
    if normalised is not None and truth(normalised):
        per_token(draft, normalised, name)
    else:
        draft.carried(normalised, "objective.length_normalized", "off there")


def pairs(given: Given, draft: Draft, prefix: str, kind: GivenKey | None) -> dict[str, Any]:
    """The columns of a data set of pairs, or of judged answers, and the template that its type writes.

    Types: chatml.intel, chat_template.default with the fields' names, user_defined.default, or a section.
    """
    section = f"{prefix}.type"
    if kind is None and given.under(section):
        return {"columns": _differing(_user_defined(given, draft, section))}
    name = "default" if kind is None or kind.value is None else str(kind.value)
    strategy, _, function = name.rpartition(".")
    strategy, function = (strategy, function) if strategy else (function, "default")
    fields = {
        field: given.take(f"{prefix}.{field}")
        for field in ("field_messages", "field_chosen", "field_rejected", "field_prompt", "field_system")
    }
    for entry in fields.values():
        draft.carried(entry, f"{prefix.replace('datasets', 'data.train')}.columns")
    if strategy == "bradley_terry":
        draft.carried(kind, "data.train.0.format")
        return {"columns": {"prompt": "input"}}
    strategies = JUDGED if draft.value("objective.kind") == "kto" else STRATEGIES
    if kind is not None and (function not in strategies or strategy == "passthrough"):
        form = "feedback" if strategies is JUDGED else "preference"
        draft.otherwise(kind, f"type {name} is read as format {form}", changes=True)
    else:
        draft.carried(kind, "data.train.0.format")
    columns = dict(strategies.get(function, {}))
    if strategy == "chat_template" and function == "default":
        messages = fields["field_messages"]
        field = "messages" if messages is None else str(messages.value)
        role = given.value(
            f"{prefix}.message_property_mappings.role", given.value(f"{prefix}.message_field_role")
        )
        columns["conversations" if role == "from" else "prompt"] = field
    for ours, key in (("chosen", "field_chosen"), ("rejected", "field_rejected"), ("prompt", "field_prompt")):
        entry = fields[key]
        if entry is not None:
            columns[ours] = str(entry.value)
    return {"columns": _differing(columns)}


def _differing(columns: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for ours, theirs in columns.items() if ours != theirs}


def templates(given: Given, draft: Draft) -> None:
    """Types that write a template of their own, whatever chat_template says; a recipe has one."""
    types = [
        given.get(f"{prefix}.type") for prefix in (*given.items("datasets"), *given.items("test_datasets"))
    ]
    named = [
        (str(kind.value).removeprefix("bradley_terry.").partition(".")[0], kind)
        for kind in types
        if kind is not None
    ]
    own = [(TEMPLATES[strategy], kind) for strategy, kind in named if strategy in TEMPLATES]
    if not own:
        return
    first, by = own[0]
    draft.put("model.chat_template", first, by)
    for template, kind in own:
        if template != first:
            draft.otherwise(kind, f"its rows are written with {first}", "model.chat_template", changes=True)
    stated = given.take("chat_template")
    if stated is None or stated.value == first:
        draft.carried(stated, "model.chat_template")
    else:
        read = any(strategy == "chat_template" for strategy, _ in named)
        how = f"{by.key}: {by.value} writes {first}"
        draft.otherwise(stated, how, "model.chat_template", changes=read)


def _user_defined(given: Given, draft: Draft, section: str) -> dict[str, str]:
    """Columns that the file names, and texts around them, of which a chat template takes the place."""
    columns, entries = dict[str, str](), given.take_below(section)
    around = [entry for entry in entries if entry.key.endswith("_format")]
    for entry in entries:
        name = entry.key.rpartition(".")[2]
        if name.startswith("field_"):
            columns[name.removeprefix("field_")] = str(entry.value)
            draft.carried(entry, "data.train.0.columns")
    prompt = next((entry for entry in around if entry.key.endswith(".prompt_format")), None)
    if prompt is not None and str(prompt.value).endswith(CHATML_PROMPT):
        draft.put("model.chat_template", "chatml", prompt)
        for entry in around:
            draft.carried(entry, "model.chat_template")
        draft.carried(given.take("chat_template"), "model.chat_template", "the data set's own is")
        return columns
    how = "the chat template writes the turns; there, these texts, or nothing, are around them"
    for entry in around or entries[:1]:
        draft.otherwise(entry, how, "model.chat_template", changes=True)
    return columns
