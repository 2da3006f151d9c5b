"""Greedy answers as transformers' own generation gives them: what those of this toolkit are compared with."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from data_prep.chat.rendering import end_of_turn_ids
from finetune.generation.model import causal_model

NEAR_TIE = 1e-4
"""Between the two largest logits: either token may come, by the order in which sums are rounded."""


def transformers_ids(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """The answer to each prompt alone, the end of its turn included, without options of the model's own."""
    inner = causal_model(model)
    options = GenerationConfig(eos_token_id=end_of_turn_ids(tokenizer), pad_token_id=tokenizer.pad_token_id)
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    found = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=inner.device)
        room = min(max_new_tokens, inner.config.max_position_embeddings - len(prompt))
        made = inner.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=options, max_new_tokens=room
        )
        found.append(made[0, len(prompt) :].tolist())
    inner.generation_config = own
    return found


@torch.no_grad()
def parts_at_a_near_tie(
    model: Any, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]
) -> bool:
    """Whether two greedy answers are the same, or part where the two largest logits are a near tie."""
    if ours == theirs:
        return True
    place = next(number for number, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    text = torch.tensor([[*prompt, *ours[:place]]], device=model.device)
    first, second = model(text).logits[0, -1].float().topk(2).values.tolist()
    return bool(first - second <= NEAR_TIE)
