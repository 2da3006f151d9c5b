"""What becomes of values about the model and the adapter."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_prep.config import is_template_text
from finetune.conversion.draft import Draft
from finetune.conversion.given import GivenKey, base_name, local, name_list, shown, truth, whole
from finetune.recipe.aliases import TEMPLATES, Alias

ALL_TARGETS = ("all", "all-linear", "all_linear", "*", "*_proj", "*.*_proj")
MODULES = {"output_proj": "o_proj", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
PRECISIONS = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
    "float": "fp32",
    "bf16-true": "bf16",
    "bf16-mixed": "bf16",
    "16-true": "fp16",
    "16-mixed": "fp16",
    "32-true": "fp32",
    "auto": "auto",
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
}
QUANTISED = re.compile(r"(?i)[-_.](gptq|awq|bnb-4bit|bnb-8bit|[2-8]bit|int4|int8|fp8|nf4|nvfp4|mxfp4)\b")
METHODS = {
    "lora": "lora",
    "qlora": "qlora",
    "full": "full",
    "dora": "dora",
    "none": "full",
    "unsloth": "lora",
    "sft": "full",
}


def base(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """A hub id or a folder."""
    name = base_name(entry, draft.given)
    draft.carry(entry, alias.ours, name)
    if QUANTISED.search(name):
        how = "a base that is quantised already: name its 16-bit original, with adapter.method: qlora"
        draft.otherwise(entry, how, alias.ours, changes=True)


def revision(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """A commit, tag or branch; main is the newest."""
    if entry.off or entry.value == "main":
        draft.carried(entry, alias.ours, "the newest, as here")
    else:
        draft.carry(entry, alias.ours, entry.value)


def thinking(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """Whether answers have thoughts, where the template knows any."""
    if entry.value is None or truth(entry):
        draft.carried(entry, alias.ours, "as the rows and the template have it")
        return
    draft.put(alias.ours, "drop", entry)
    how = "an empty thought before the answer isn't learned there; whether there is one is the template's"
    draft.otherwise(entry, how, alias.ours, changes=True)


def path(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """A file or a folder."""
    if entry.off:
        draft.carried(entry, alias.ours, "not set there, nor here")
    else:
        draft.carry(entry, alias.ours, local(str(entry.value), draft.given))


def template(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """A named template, Jinja text or a file; a tool's own name for what the tokenizer brings."""
    value = entry.value
    if entry.off:
        draft.carried(entry, alias.ours, "the tokenizer's own, as here")
    elif not isinstance(value, str):
        raise entry.refused(f"got {shown(value)}, expected a name or a template")
    elif is_template_text(value):
        draft.carry(entry, alias.ours, value)
    elif value.endswith((".jinja", ".jinja2", ".j2")):
        draft.carry(entry, alias.ours, local(value, draft.given))
    elif value.lower() in TEMPLATES:
        meant = TEMPLATES[value.lower()]
        if meant is None:
            draft.otherwise(entry, "the tokenizer's own template", "model.chat_template")
        else:
            draft.carry(entry, alias.ours, meant)
    else:
        how = f"template {value} is taken to be the tokenizer's own; look at `finetune data --preview 3`"
        draft.otherwise(entry, how, "model.chat_template")


def names(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """Modules or tokens."""
    if entry.off:
        draft.carried(entry, alias.ours, "none there, none here")
    else:
        draft.carry(entry, alias.ours, [MODULES.get(name, name) for name in name_list(entry)])


def method(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """LoRA, QLoRA or all weights."""
    name = entry.key.rpartition(".")[2]
    if name in ("use_peft", "q_lora"):
        on = truth(entry)
        method = (
            ("lora" if name == "use_peft" else "qlora") if on else ("full" if name == "use_peft" else None)
        )
        if method is None:
            draft.carried(entry, alias.ours, "no quantised base")
            return
    else:
        known = METHODS.get(str(entry.value).lower())
        if known is None:
            raise entry.refused(
                f"got {entry.value!r}; expected lora, qlora, dora or full: that is what can be trained here"
            )
        method = known
    if method == "dora":
        draft.put("adapter.use_dora", True, entry)
        method = "lora"
    if draft.value("adapter.method") == "qlora" and method == "lora":
        draft.carried(entry, alias.ours)
    else:
        draft.carry(entry, alias.ours, method)


def bits(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """How the base is quantised."""
    name = entry.key.rpartition(".")[2]
    bits = {"load_in_4bit": 4, "load_in_8bit": 8}.get(name)
    if entry.off:
        draft.carried(entry, alias.ours, "not quantised")
        return
    bits = bits or whole(entry)
    if bits not in (4, 8):
        raise entry.refused(f"got {bits} bits, expected 4 or 8: bases are trained in 16 bits, NF4 or int8")
    draft.note("bits", replace(entry, value=bits))
    draft.carried(entry, "adapter.method" if bits == 4 else "adapter.quantization")


def targets(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """Modules that get an adapter, by their last name."""
    value = entry.value
    if entry.off:
        draft.carried(entry, alias.ours, "the tool's own modules")
        return
    if isinstance(value, str) and any(mark in value for mark in "()[]\\|^"):
        matched(entry, value, alias, draft)
        return
    found = [MODULES.get(name.rpartition(".")[2], name.rpartition(".")[2]) for name in name_list(entry)]
    if any(name in ALL_TARGETS for name in (*found, str(value))):
        draft.carry(entry, alias.ours, "all-linear")
    else:
        draft.carry(entry, alias.ours, list(dict.fromkeys(found)))


def modules(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """Modules by any part of their names."""
    if entry.off:
        draft.carried(entry, alias.ours, "off there")
    else:
        names = [entry.value] if isinstance(entry.value, str) else name_list(entry)
        _named(entry, dict.fromkeys(names), alias.ours, draft)


def by_module(entries: Sequence[GivenKey], key: str, draft: Draft) -> None:
    """Values by modules' names, such as rank_pattern's, each an entry of its own."""
    if entries:
        values = {entry.key.removeprefix(f"{key}."): entry.value for entry in entries}
        _named(replace(entries[0], key=key, value=values), values, f"adapter.{key}", draft)


def _named(entry: GivenKey, values: Mapping[str, Any], ours: str, draft: Draft) -> None:
    """What is said of modules, by their names; regular expressions that are more than a name are not
    carried."""
    names = {name: name.removeprefix("^").removesuffix("$").replace("\\.", ".") for name in values}
    if any(re.fullmatch(r"[A-Za-z0-9_.]+", name) is None for name in names.values()):
        draft.drop(entry, f"modules are named, not matched: list them in {ours}")
    elif isinstance(entry.value, dict):
        draft.carry(entry, ours, {names[name]: value for name, value in values.items()})
    else:
        draft.carry(entry, ours, list(names.values()))


def matched(entry: GivenKey, value: str, alias: Alias, draft: Draft) -> None:
    """A regular expression that ends in the modules' names: (q|k|v)_proj, or (q_proj|v_proj)."""
    end = re.fullmatch(r".*\(([a-z_|]+)\)([a-z_]*)\$?", value)
    if end is None:
        draft.drop(entry, "modules are named, not matched: list them in adapter.target_modules")
        return
    draft.put(alias.ours, [name + end[2] for name in end[1].split("|")], entry)
    draft.otherwise(entry, "the modules that the expression ends in, in all layers", alias.ours)


def all_linear(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """A switch for all linear layers."""
    if truth(entry):
        draft.carry(entry, alias.ours, "all-linear")
    else:
        draft.carried(entry, alias.ours, "the modules that are named")


def start(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """An adapter to continue."""
    if entry.off:
        draft.carried(entry, alias.ours, "a new adapter")
        return
    given = name_list(entry)
    if len(given) > 1:
        raise entry.refused("several adapters; one can be continued, merge the others first")
    draft.carry(entry, alias.ours, local(given[0], draft.given))


def double(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """Whether the constants of NF4 are quantised too."""
    draft.note("double", entry)
    draft.carried(entry, alias.ours)


def quant_type(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """The form of four bits."""
    draft.note("quant_type", entry)


def compute(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """The arithmetic's type over a quantised base."""
    draft.note("compute", entry)
    draft.carried(entry, alias.ours)


def precision(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """The base's and the arithmetic's type."""
    if entry.value is None:
        draft.carried(entry, alias.ours, "auto")
        return
    meant = PRECISIONS.get(str(entry.value).lower().replace("_", "-"))
    if meant is None:
        raise entry.refused(f"got {shown(entry.value)}, expected bfloat16, float16 or float32")
    name = entry.key.rpartition(".")[2]
    if name == "torch_dtype_str" and "mixed" in str(draft.given.value("training.mixed_precision_dtype", "")):
        meant = "fp32"
    if draft.value(alias.ours) in ("bf16", "fp16") and meant in ("auto", "fp32"):
        draft.otherwise(entry, f"arithmetic in {draft.value(alias.ours)}", alias.ours)
        return
    draft.carry(entry, alias.ours, meant)


def flag(name: str) -> Callable[[GivenKey, Alias, Draft], None]:
    """For switches like bf16: true."""

    def switch(entry: GivenKey, alias: Alias, draft: Draft) -> None:
        if entry.value == "auto":
            draft.carry(entry, alias.ours, "auto")
        elif truth(entry):
            draft.carry(entry, alias.ours, name)
        elif name == "bf16":
            draft.note("not_bf16", entry)
        else:
            draft.carried(entry, alias.ours, f"not {name}")

    return switch


def pure_bf16(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """Weights and states in bf16."""
    if truth(entry):
        draft.note("pure_bf16", entry)
        draft.put("train.precision", "bf16", entry)
    draft.carried(entry, alias.ours)
