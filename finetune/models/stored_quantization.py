"""How a base is stored quantised, by its config.json, and what can be done with it. Loads no torch."""

import importlib.util
from pathlib import Path
from typing import Any

from finetune.errors import ModelError

NF4_DOUBLE = "nf4-double"
"""bitsandbytes' NormalFloat with its scales quantised once more: what adapter.method qlora makes of a
base."""

BITSANDBYTES = ("nf4", NF4_DOUBLE, "fp4", "fp4-double", "int8")
"""What trains as QLoRA: logits and an adapter's gradients were seen to be those of the dequantised base."""


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
        return "int8"
    method = found.get("quant_method")
    if not isinstance(method, str) or method == "bitsandbytes":
        raise ModelError(
            f"{path}: quantization_config has the quant_method {method!r}, and doesn't say what is quantised "
            "how."
        )
    return method


def check_trainable(config: dict[str, Any], method: str, name: str) -> str | None:
    """How a base that is to be trained on is stored quantised; None where it isn't. `method` is
    adapter.method.

    Raises ModelError where such a base can't be trained so.
    """
    stored = stored_quantization(config)
    if stored is None:
        return None
    instead = (
        "take the unquantised base that it was made of (adapter.method: qlora quantises that one while it "
        "loads)"
    )
    if stored not in BITSANDBYTES:
        # peft has no layer for the packed weights of some, and drops the gradient through others.
        raise ModelError(
            f"model.base {name} is stored quantised with {stored}, on which no adapter is trained here; "
            f"{instead}, or one that bitsandbytes stored in 4 or 8 bit."
        )
    if method == "full":
        raise ModelError(
            f"adapter.method is full, and model.base {name} is stored quantised ({stored}): such weights "
            "can't be trained. Set adapter.method: lora, or "
            f"{instead.replace(' (adapter.method: qlora quantises that one while it loads)', '')}."
        )
    if method == "qlora" and not stored.startswith("nf4"):
        raise ModelError(
            f"adapter.method is qlora, a base in NF4, and model.base {name} is stored in {stored}: set "
            f"adapter.method: lora to train on it as it is, or {instead}."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.base {name} is stored by bitsandbytes ({stored}), which is not installed: pip install "
            "bitsandbytes"
        )
    return stored
