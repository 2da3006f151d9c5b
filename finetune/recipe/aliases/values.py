"""Values of other tools and what they are here."""

from collections.abc import Mapping
from typing import NamedTuple


class Value(NamedTuple):
    """A value that another tool has for a knob, and what is written here in its place."""

    key: str
    theirs: str
    meant: str


_LORA = "method lora with"
VALUES = (
    Value("adapter.method", "dora", f"{_LORA} use_dora: true"),
    Value("adapter.method", "rslora", f"{_LORA} use_rslora: true"),
    Value("adapter.method", "freeze", "no method here: some layers can't be trained alone"),
    Value("adapter.method", "adalora", "no method here; lora is the nearest"),
    Value("adapter.target_modules", "all", "all-linear"),
    Value("train.schedule", "constant_with_warmup", "schedule: constant with warmup_ratio"),
    Value("train.schedule", "cosine_with_min_lr", "schedule: cosine_with_minimum"),
    Value("train.schedule", "cosine_warmup_with_min_lr", "schedule: cosine_with_minimum"),
    Value("train.schedule", "warmup_stable_decay", "schedule: wsd"),
    Value("train.precision", "bfloat16", "bf16"),
    Value("train.precision", "float16", "fp16"),
    Value("train.precision", "float32", "fp32"),
    Value("data.over_length", "delete", "drop"),
    Value("data.over_length", "truncate", "truncate_end"),
    Value("data.over_length", "right", "truncate_end"),
    Value("data.over_length", "left", "truncate_start"),
    Value("data.over_length", "raise", "refuse"),
    Value("format", "conversation", "messages, or sharegpt where turns have `from` and `value`"),
    Value("format", "conversations", "messages, or sharegpt where turns have `from` and `value`"),
    Value("format", "chat", "messages"),
    Value("format", "chat_template", "messages"),
    Value("format", "chatml", "messages, with model.chat_template: chatml"),
    Value("format", "openai", "messages"),
    Value("format", "completion", "text"),
    Value("format", "pretrain", "text"),
    Value("format", "pretraining", "text"),
    Value("format", "instruct", "alpaca"),
    Value("format", "input_output", "template"),
    Value("format", "alpaca_chat.load_qa", "question_answer"),
)

OPTIMIZERS: Mapping[str, str] = {
    "adamw": "adamw",
    "adam": "adam",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw",
    "adamw_anyprecision": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_8bit": "adamw_8bit",
    "adamw_torch_8bit": "adamw_torch_8bit",
    "adamw_torch_4bit": "adamw_torch_4bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "pagedadamw8bit": "paged_adamw_8bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw": "paged_adamw_32bit",
    "pagedadamw": "paged_adamw_32bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
    "rmsprop": "rmsprop",
    "adagrad": "adagrad",
    "lion": "lion",
    "lion_32bit": "lion",
    "lion_pytorch": "lion",
    "lion_8bit": "lion_8bit",
    "paged_lion_8bit": "paged_lion_8bit",
    "paged_lion_32bit": "paged_lion_32bit",
    "schedule_free_adamw": "schedule_free_adamw",
    "polora": "polora",
}
"""Their optimizers, in lower case and without the module's name."""

SCHEDULES: Mapping[str, str] = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_decay": "cosine",
    "cosine_with_min_lr": "cosine_with_minimum",
    "cosine_with_minimum": "cosine_with_minimum",
    "get_cosine_schedule_with_warmup": "cosine",
    "warmup_stable_decay": "wsd",
    "wsd": "wsd",
}
"""Their schedules."""

FORMATS: Mapping[str, str] = {
    "alpaca": "alpaca",
    "sharegpt": "sharegpt",
    "chat_template": "messages",
    "messages": "messages",
    "openai": "messages",
    "chatml": "messages",
    "completion": "text",
    "pretrain": "text",
    "pretraining": "text",
    "text": "text",
    "conversation": "messages",
    "instruct": "alpaca",
}
"""What they call the forms of rows."""

TEMPLATES: Mapping[str, str | None] = {
    "alpaca": "alpaca",
    "chatml": "chatml",
    "llama2": "llama2",
    "llama-2": "llama2",
    "llama3": "llama3",
    "llama3_nothink": "llama3",
    "llama-3": "llama3",
    "llama3-instruct": "llama3",
    "llama3_1": "llama3",
    "mistral": "mistral",
    "mistral_v1": "mistral",
    "zephyr": "zephyr",
    "tokenizer_default": None,
    "default": None,
    "qwen": None,
    "qwen3": None,
    "qwen3_nothink": None,
    "qwen3-instruct": None,
    "qwen2": None,
    "qwen_25": None,
    "qwen2_5": None,
    "phi-3-instruct": None,
}
"""Their names of chat templates; None is the tokenizer's own, which families that ship one are asked by."""


def value_named(key: str, value: str) -> Value | None:
    """What a value that somebody wrote for a key is here; `format` stands for that of any source."""
    name = "format" if key.rpartition(".")[2] == "format" else key
    return next((known for known in VALUES if known.key == name and known.theirs == value.lower()), None)


__all__ = ["FORMATS", "OPTIMIZERS", "SCHEDULES", "TEMPLATES", "VALUES", "Value", "value_named"]
