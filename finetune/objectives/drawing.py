"""How a model in training draws the answers that it learns from."""

from typing import Annotated

from pydantic import Field

from data_prep.config import Section


class DrawingOptions(Section):
    """Keys of what draws answers."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """The longest answer."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Answers are drawn of logits divided by it."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that have this probability together."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from so many of the likeliest tokens; 0 from all."""
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Draw from tokens that have this share of the likeliest one's probability."""
    answers_at_a_time: Annotated[int, Field(ge=1)] = 64
    """Answers that are drawn side by side; memory may allow fewer."""
