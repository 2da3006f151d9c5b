"""Models whose answers differ from prompt to prompt, and what they answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from data_prep.tokenizers.tokens import text_of
from finetune.generation.continuous import ContinuousBatch
from finetune.generation.generate import generate
from finetune.generation.request import Piece, Request
from tests.support.oracle import transformers_ids

TOKENS = 24


def enlarge(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its weights enlarged so that tokens differ in likelihood."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model.eval()


def enlarged(folder: Path) -> PreTrainedModel:
    """The model in a folder, so enlarged, in float32."""
    return enlarge(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32))


def finished(
    batch: ContinuousBatch, requests: Sequence[Request], *, join_every: int = 0
) -> list[list[Piece]]:
    """The pieces of each request's answer; all join at once, or one every so many steps."""
    found: dict[int, list[Piece]] = {id(request): [] for request in requests}
    waiting, steps = list(requests), 0
    while waiting or batch.busy:
        if waiting and (not join_every or steps % join_every == 0):
            for request in waiting[: 1 if join_every else None]:
                batch.add(request)
                waiting.remove(request)
        for piece in batch.step():
            found[id(piece.request)].append(piece)
        steps += 1
    return [found[id(request)] for request in requests]


def texts(answers: Sequence[Sequence[Piece]]) -> list[str]:
    return ["".join(piece.text for piece in pieces) for pieces in answers]


def expected_texts(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: Any, max_new_tokens: int = TOKENS
) -> list[str]:
    """What transformers answers greedily to each prompt alone."""
    found = transformers_ids(model.eval(), tokenizer, prompts, max_new_tokens)
    return [text_of(ids, tokenizer) for ids in found]


def drawn_alone(model: Any, tokenizer: PreTrainedTokenizerFast, prompts: Any, **options: Any) -> list[str]:
    """What `generate` draws, one prompt at a time."""
    settings = {"max_new_tokens": TOKENS, "batch_size": 1} | options
    return [generate(model, tokenizer, [prompt], **settings)[0].text for prompt in prompts]
