"""The evaluate section: how answers are generated and scored."""

from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import Section

MetricName = Literal[
    "loss", "perplexity", "bits_per_byte", "exact_match", "squad_exact_match", "squad_f1", "bleu", "chrf", "rouge1", "rouge2",
    "rougeL", "accuracy", "f1_macro", "f1_micro", "matthews", "likelihood_accuracy", "likelihood_f1_macro",
    "likelihood_matthews", "mean_squared_error", "mean_absolute_error", "pearson", "pass@1", "pass@5", "pass@10",
]  # fmt: skip
"""The metrics; finetune/evaluation/metrics/base.py says what each is."""

BleuTokenizer = Literal["auto", "13a", "intl", "zh", "char", "ja-mecab", "ko-mecab", "flores200"]
"""sacrebleu's tokenizers."""

LOSSES: frozenset[MetricName] = frozenset({"loss", "perplexity", "bits_per_byte"})
"""Metrics of the likelihood of the rows' own tokens: nothing is generated for them."""

BY_LIKELIHOOD: frozenset[MetricName] = frozenset({"likelihood_accuracy", "likelihood_f1_macro", "likelihood_matthews"})
OF_LABELS: frozenset[MetricName] = BY_LIKELIHOOD | {"accuracy", "f1_macro", "f1_micro", "matthews"}
"""Metrics that need to know the labels."""

OF_NUMBERS: frozenset[MetricName] = frozenset({"mean_squared_error", "mean_absolute_error", "pearson"})
"""Metrics of a head that learns a number."""

PASS_AT: dict[MetricName, int] = {"pass@1": 1, "pass@5": 5, "pass@10": 10}
"""Metrics that run the code of so many answers."""

MODULES: dict[MetricName, str] = {
    "bleu": "sacrebleu", "chrf": "sacrebleu", "rouge1": "rouge_score", "rouge2": "rouge_score", "rougeL": "rouge_score",
    "f1_macro": "sklearn", "f1_micro": "sklearn", "matthews": "sklearn", "likelihood_f1_macro": "sklearn",
    "likelihood_matthews": "sklearn",
}  # fmt: skip
"""What computes a metric that isn't computed here: a module of finetune/extras.py."""

LOWER_IS_BETTER: frozenset[MetricName] = LOSSES | {"mean_squared_error", "mean_absolute_error"}
"""Of all others, higher is better."""


class EvaluateSection(Section):
    """How answers are generated and scored."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts generated at once, and rows a forward pass when the loss is measured after training."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """The longest answer."""

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Score at most so many evaluation rows, the first ones; all when absent."""

    metrics: Annotated[tuple[MetricName, ...], Field(strict=False)] = ()
    """What is measured when training ends, and by `finetune evaluate` (without any: loss, perplexity and exact match)."""

    rows_in_training: Annotated[int, Field(ge=1)] | None = None
    """Measure the metrics at each evaluation in training as well, on the first so many rows; only at the end when absent."""

    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ()
    """What accuracy, f1 and matthews tell apart; those of model.head, or of format classification's `labels`, when absent."""

    bleu_tokenizer: BleuTokenizer = "auto"
    """sacrebleu's tokenizer for bleu; auto goes by the script of each row's references: 13a (WMT's), zh or char."""

    samples_per_prompt: Annotated[int, Field(ge=1, le=1000)] = 1
    """Answers drawn for each prompt, of which pass@k counts; 1 is the likeliest answer."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 0.8
    """With several samples: how freely they are drawn."""

    seconds_per_program: Annotated[float, Field(gt=0, le=600)] = 5.0
    """pass@k: how long a generated program may run."""
