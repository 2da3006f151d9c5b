"""The published Alpaca prompt, written out."""

INTRODUCTION = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request."
CONTEXT = "provides further context"


def published(instruction: str, given: str = "") -> str:
    """The prompt of tatsu-lab/stanford_alpaca's train.py (PROMPT_DICT), with the line break after the last
    heading that Axolotl, torchtune, LitGPT and Unsloth write."""
    if not given:
        return f"{INTRODUCTION}. {REQUEST}\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    return (
        f"{INTRODUCTION}, paired with an input that {CONTEXT}. {REQUEST}\n\n"
        f"### Instruction:\n{instruction}\n\n### Input:\n{given}\n\n### Response:\n"
    )
