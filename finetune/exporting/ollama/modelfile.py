"""The Modelfile. https://github.com/ollama/ollama/blob/main/docs/modelfile.md"""

import json

from transformers import PreTrainedTokenizerFast

from data_prep.chat.rendering import end_of_turn_ids
from finetune.errors import ExportError
from finetune.exporting.ollama.translation import GoTemplate

MODELFILE = "Modelfile"
QUOTES = '"""'


def modelfile(weights: str, template: GoTemplate, tokenizer: PreTrainedTokenizerFast) -> str:
    """What `ollama create` reads: weights, template, system message, and where an answer ends.

    Raises ExportError for a text that a Modelfile can't quote.
    """
    ends = tokenizer.convert_ids_to_tokens(end_of_turn_ids(tokenizer))
    lines = [f"FROM ./{weights}", f"TEMPLATE {_quoted(template.text)}"]
    lines += [f"SYSTEM {_quoted(template.system)}"] if template.system is not None else []
    lines += [f"PARAMETER stop {json.dumps(str(end), ensure_ascii=False)}" for end in ends]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if QUOTES in text or text.endswith('"'):
        raise ExportError(f"a Modelfile can't hold a text with {QUOTES} in it, or a quote at its end.")
    return f"{QUOTES}{text}{QUOTES}"
