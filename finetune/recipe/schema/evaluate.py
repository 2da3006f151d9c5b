"""The evaluate section: how answers are generated and scored."""

from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import NAMES, PATH, Section

MetricName = Annotated[str, Field(json_schema_extra={NAMES: "metrics"})]
"""A metric of finetune/scoring/metrics, which the rules look up: the schema is below the registry."""

BleuTokenizer = Literal["auto", "13a", "intl", "zh", "char", "ja-mecab", "ko-mecab", "flores200"]
"""sacrebleu's tokenizers."""


class EvaluateSection(Section):
    """How answers are generated and scored."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts answered at a time, and rows a forward pass when the loss is measured after training."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """The longest answer."""

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Score at most so many evaluation rows, the first ones; all when absent."""

    metrics: Annotated[tuple[MetricName, ...], Field(strict=False)] = ()
    """What is measured when training ends, and by `finetune evaluate` (without any: loss, perplexity and
    exact match)."""

    general_text: Annotated[str | None, PATH] = None
    """general_loss: a file of text in UTF-8 whose paragraphs are measured; the toolkit's own, openings and
    speeches in English, when absent."""

    rows_in_training: Annotated[int, Field(ge=1)] | None = None
    """Measure the metrics at each evaluation in training as well, on the first so many rows; only at the end
    when absent."""

    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ()
    """What accuracy, f1 and matthews tell apart; those of model.head, or of format classification's `labels`,
    when absent."""

    bleu_tokenizer: BleuTokenizer = "auto"
    """sacrebleu's tokenizer for bleu; auto goes by the script of each row's references: 13a (WMT's), zh or
    char."""

    samples_per_prompt: Annotated[int, Field(ge=1, le=1000)] = 1
    """Answers drawn for each prompt, of which pass@k counts; 1 is the likeliest answer."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 0.8
    """With several samples: how freely they are drawn."""

    seconds_per_program: Annotated[float, Field(gt=0, le=600)] = 5.0
    """pass@k: how long a generated program may run."""
