"""A recipe as another tool's file: for who leaves, or wants to compare. The same three lists."""

from typing import Any

from finetune.conversion.back_data import data
from finetune.conversion.back_keys import HERE_ONLY, KEYS
from finetune.conversion.back_training import training
from finetune.conversion.draft import Line
from finetune.conversion.forward import Conversion
from finetune.conversion.given import ConvertError
from finetune.conversion.writing import flow
from finetune.recipe.load import LoadedRecipe, leaves
from finetune.recipe.reading.tree import dotted

BACK = ("axolotl", "llamafactory", "trl")


class Back:
    """The file that is being written, and what became of each key of the recipe."""

    def __init__(self, loaded: LoadedRecipe, tool: str, processes: int):
        self.loaded, self.tool, self.processes = loaded, tool, processes
        self.values: dict[str, tuple[Any, str]] = {}
        self.lines: list[Line] = []
        self.plain = loaded.recipe.model_dump(mode="json")
        self.seen: set[str] = set()

    def written(self, path: str) -> bool:
        """Whether the user wrote the key."""
        return self.loaded.origins.get(path, "default") != "default"

    def put(self, key: str, value: Any, path: str) -> None:
        """A line of their file, and the key that it comes from."""
        self.values[key] = value, path

    def differs(self, path: str, theirs: str, how: str) -> None:
        """A key whose value is another there, and changes the result, also where it is our default."""
        key = path if self.written(path) else f"{path} (default)"
        self.seen.add(path)
        self.lines.append(
            Line("otherwise", key, self.loaded.origins.get(path, ""), theirs, how, changes=True)
        )

    def told(self, path: str, fate: Any, theirs: str = "", how: str = "", *, changes: bool = False) -> None:
        """What became of a key, of those that the user wrote."""
        self.seen.add(path)
        if self.written(path):
            self.lines.append(Line(fate, path, self.loaded.origins[path], theirs, how, changes))


def convert_back(loaded: LoadedRecipe, tool: str, *, processes: int = 1) -> Conversion:
    """A recipe as the file of Axolotl, LLaMA-Factory or TRL's command line, with all that it decides written
    out, our defaults too. Raises ConvertError for a tool that recipes aren't written for, and a batch that
    doesn't divide over the processes."""
    if tool not in BACK:
        raise ConvertError(f"--to {tool}: expected {', '.join(BACK[:-1])} or {BACK[-1]}")
    back = Back(loaded, tool, processes)
    for step in (_model, _method, data, training, _rest):
        step(back)
    title = f"# Converted from the recipe {loaded.name}. Behind each line is the key that it came from."
    body = [f"{f'{key}: {flow(value)}':<56}  # {path}" for key, (value, path) in back.values.items()]
    return Conversion.of(tool, "\n".join([title, "", *body, ""]), back.lines)


def _model(back: Back) -> None:
    recipe = back.loaded.recipe
    if not isinstance(recipe.model.base, str):
        raise ConvertError(
            "model.base is a GGUF file, which these tools don't train; name a folder or a hub id"
        )
    if recipe.model.head is not None and recipe.objective.kind != "reward":  # which brings its own
        raise ConvertError("model.head: a classifier; its training is not written for other tools")
    template = recipe.model.chat_template
    if template is not None:
        key = "template" if back.tool == "llamafactory" else "chat_template" if back.tool == "axolotl" else ""
        if key and "\n" not in template and "{" not in template:
            back.put(key, template, "model.chat_template")
            back.told("model.chat_template", "carried", key)
        else:
            back.told("model.chat_template", "dropped", how="no such template there", changes=True)
    _tokens(back)


def _tokens(back: Back) -> None:
    """New tokens, and the one that fills up; without a template all three take the tokenizer's own."""
    model = back.loaded.recipe.model
    if model.new_tokens and back.tool != "trl":
        axolotl = back.tool == "axolotl"
        key, listed = (
            ("tokens", list(model.new_tokens)) if axolotl else ("add_tokens", ",".join(model.new_tokens))
        )
        back.put(key, listed, "model.new_tokens")
        if not axolotl:
            back.put("resize_vocab", True, "model.new_tokens")
        for path in [path for path in back.loaded.origins if path.startswith("model.new_tokens")]:
            back.told(path, "carried", key)
    if model.pad_token is not None and back.tool == "axolotl":
        back.put("special_tokens", {"pad_token": model.pad_token}, "model.pad_token")
        back.told("model.pad_token", "carried", "special_tokens.pad_token")


def _method(back: Back) -> None:
    adapter = back.loaded.recipe.adapter
    method = adapter.method
    key = {"axolotl": "adapter", "llamafactory": "finetuning_type", "trl": "use_peft"}[back.tool]
    value: Any = {
        "axolotl": method,
        "llamafactory": "full" if method == "full" else "lora",
        "trl": method != "full",
    }[back.tool]
    if not (back.tool == "axolotl" and method == "full"):
        back.put(key, value, "adapter.method")
    if method == "qlora":
        eight = adapter.quantization == "int8"
        bits = {
            "axolotl": "load_in_8bit" if eight else "load_in_4bit",
            "trl": "load_in_8bit" if eight else "load_in_4bit",
        }
        if back.tool == "llamafactory":
            back.put("quantization_bit", 8 if eight else 4, "adapter.method")
        else:
            back.put(bits[back.tool], True, "adapter.method")
        if back.tool == "axolotl" and eight:
            back.put("adapter", "lora", "adapter.method")
        double = {"llamafactory": "double_quantization", "trl": "use_bnb_nested_quant"}.get(back.tool)
        if double and not eight:
            back.put(double, adapter.double_quantization, "adapter.double_quantization")
        if back.tool == "axolotl" and not eight and not adapter.double_quantization:
            once = {"bnb_4bit_use_double_quant": False}
            back.put("bnb_config_kwargs", once, "adapter.double_quantization")
    for path in ("adapter.method", "adapter.quantization", "adapter.double_quantization"):
        back.told(path, "carried", key)
    if method == "full":
        back.seen |= {path for path in back.loaded.origins if path.startswith("adapter.")}
        return
    targets = adapter.target_modules
    names = {"axolotl": "lora_target_modules", "llamafactory": "lora_target", "trl": "lora_target_modules"}[
        back.tool
    ]
    if targets == "all-linear":
        if back.tool == "axolotl":
            names = "lora_target_linear"
        back.put(
            names,
            {"axolotl": True, "llamafactory": "all", "trl": "all-linear"}[back.tool],
            "adapter.target_modules",
        )
    else:
        listed = list(targets)
        back.put(names, ",".join(listed) if back.tool == "llamafactory" else listed, "adapter.target_modules")
    back.told("adapter.target_modules", "carried", names)
    if adapter.init != "default":
        back.told("adapter.init", "dropped", how="not a key there", changes=True)
    back.seen.add("adapter.init")


def _rest(back: Back) -> None:
    index = BACK.index(back.tool)
    for location in leaves(back.plain):
        path = dotted(location)
        if path in back.seen:
            continue
        here: Any = back.plain
        for part in location:
            here = here[int(part)] if isinstance(here, list) else here[part]
        key = KEYS.get(path, ("", "", ""))[index]
        if key and here not in (None, [], ""):
            back.put(key, here, path)
            back.told(path, "carried", key)
        elif here is None or not back.written(path):
            back.seen.add(path)
        elif path.startswith(HERE_ONLY):
            back.told(path, "otherwise", how="only here; the training is the same")
        else:
            back.told(path, "dropped", how=f"not a key of {back.tool}", changes=True)
