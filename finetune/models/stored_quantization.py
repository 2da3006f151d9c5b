"""How a base is stored quantised, by its config.json, and what can be done with it. Loads no torch."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from finetune.errors import ModelError
from finetune.recipe.paths import HUB_ID
from finetune.recipe.schema.adapter import AdapterSection

QUANTIZED_NAME = re.compile(
    r"[-_.](unsloth[-_.])?(bnb[-_.]?[48]bit|gptq|awq|int[48]|[48]bit|fp8|nf4|w\d+a\d+|quantized)\b.*$",
    re.IGNORECASE,
)
"""How repositories of quantised bases end the name of what they were made of."""

INT8 = "int8"
"""A scale per row: 127 of them are its largest number (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339)."""

NF4_DOUBLE = "nf4-double"
"""bitsandbytes' NormalFloat with its scales quantised once more: what adapter.method qlora makes of a
base."""

BITSANDBYTES = ("nf4", NF4_DOUBLE, "fp4", "fp4-double", INT8)
"""What trains as QLoRA: logits and an adapter's gradients were seen to be those of the dequantised base."""

DEQUANTIZABLE = ("nf4", NF4_DOUBLE, INT8)
"""What a 16-bit base can be rounded to and back: a merge can go into the base as it was trained on."""

NAMES = {"nf4": "4-bit NF4", NF4_DOUBLE: "4-bit NF4", INT8: "int8"}
"""For people."""


def stored_quantization(config: dict[str, Any], path: Path | str = "config.json") -> str | None:
    """How a model's weights are stored quantised: one of BITSANDBYTES, or another method's name (gptq, awq
    ...).

    None where they aren't. Raises ModelError where config.json doesn't say how.
    """
    found = config.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: quantization_config is a {type(found).__name__}; expected an object.")
    if found.get("load_in_4bit"):
        kind = str(found.get("bnb_4bit_quant_type", "fp4"))
        return f"{kind}-double" if found.get("bnb_4bit_use_double_quant") else kind
    if found.get("load_in_8bit"):
        return INT8
    method = found.get("quant_method")
    if not isinstance(method, str) or method == "bitsandbytes":
        raise ModelError(
            f"{path}: quantization_config has the quant_method {method!r}, and doesn't say what is quantised "
            "how."
        )
    return method


def unquantized_name(config: dict[str, Any], name: str) -> str:
    """What can be known of the base that a quantised one was made of, to be put behind it in a message: its
    config.json's _name_or_path, or its own name without what says how it is quantised."""
    noted = config.get("_name_or_path")
    if isinstance(noted, str) and noted != name and HUB_ID.fullmatch(noted):
        return f", {noted} by its config.json"
    plain = QUANTIZED_NAME.sub("", name)
    return f", by its name probably {plain}" if plain != name and HUB_ID.fullmatch(name) else ""


def check_trainable(config: dict[str, Any], adapter: AdapterSection, name: str) -> str | None:
    """How a base that is to be trained on is stored quantised; None where it isn't.

    Raises ModelError where such a base can't be trained so.
    """
    stored = stored_quantization(config)
    if stored is None:
        return None
    without = f"take the unquantised base that it was made of{unquantized_name(config, name)}"
    instead = f"{without} (adapter.method: qlora quantises that one while it loads)"
    if stored not in BITSANDBYTES:
        # peft has no layer for the packed weights of some, and drops the gradient through others.
        raise ModelError(
            f"model.base {name} is stored quantised with {stored}, on which no adapter is trained here; "
            f"{instead}, or one that bitsandbytes stored in 4 or 8 bit."
        )
    if adapter.method == "full":
        raise ModelError(
            f"adapter.method is full, and model.base {name} is stored quantised ({stored}): such weights "
            f"can't be trained. Set adapter.method: lora, or {without}."
        )
    if adapter.by_peft:
        raise ModelError(
            f"adapter.method is {adapter.method}, which was not shown on a quantised base, and model.base "
            f"{name} is stored in {stored}. Set adapter.method: lora, or {without}."
        )
    if adapter.init == "loftq" or adapter.starts_at_base:
        raise ModelError(
            f"adapter.init {adapter.init} needs the weights as they were before they were quantised, and "
            f"model.base {name} is stored in {stored}: {without}."
        )
    if adapter.method == "qlora" and not stored.startswith(adapter.quantization):
        asked = adapter.quantization.upper() if adapter.quantization == "nf4" else adapter.quantization
        raise ModelError(
            f"adapter.method is qlora, a base in {asked}, and model.base {name} is stored in {stored}: set "
            f"adapter.method: lora to train on it as it is, or {instead}."
        )
    if adapter.method == "qlora" and stored == NF4_DOUBLE and not adapter.double_quantization:
        raise ModelError(
            f"adapter.double_quantization is false, and model.base {name} is stored in {stored}: remove it "
            f"to train on the base as it is, or {instead}."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.base {name} is stored by bitsandbytes ({stored}), which is not installed: pip install "
            "bitsandbytes"
        )
    return stored
