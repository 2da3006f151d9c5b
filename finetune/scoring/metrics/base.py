"""What a metric is: all that the rest of the toolkit says of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from data_prep.config import ProblemType
from finetune.recipe.schema.evaluate import EvaluateSection
from finetune.scoring.measured import Measured, Of, Prediction

if TYPE_CHECKING:
    import numpy as np

Scorer = Callable[["np.ndarray"], float]
"""A metric over some rows, each counted so often (N); nan where it isn't defined on them."""

Model = Literal["text", "pairs", "judged", ProblemType]
"""What is measured: text that a model predicts, rewards of the answers of pairs or of judged answers, or what
the problem of a classification head says."""

Need = Literal["labels", "one_label", "bytes"]
"""What the rows must have: named labels, exactly one of them per row, or the sizes of their texts in
bytes."""


@dataclass(frozen=True)
class Metric:
    """A metric, declared once: how it is computed, and what the recipe's rules, reports and the manual say of
    it.

    Shapes: N rows.
    """

    name: str
    """In evaluate.metrics."""
    of: Of
    """What it is computed from, which decides what is asked of a model."""
    scorer: Callable[[Measured], Scorer]
    """Looks at all rows once; what it returns gives the metric for any weights of the rows, which the
    bootstrap draws."""
    about: str
    """What it is about, and its reference, in words for the manual's table."""
    scale: str = "0 to 1"
    """Its range or its unit."""
    by: str = ""
    """The library or the paper that defines it."""
    by_row: Callable[[Measured], list[float]] | None = None
    """The metric on each row alone (N); None where it says nothing of a single row."""
    signature: Callable[[Measured], str] | None = None
    """By which library's settings, where these differ from place to place."""
    higher_is_better: bool = True
    best: float = 1.0
    """Its value on a row that can't be better: the list of the worst answers leaves such rows out."""
    fits: tuple[Model, ...] = ("text",)
    """The models that it can be measured of."""
    needs: tuple[Need, ...] = ()
    samples: int = 1
    """Answers per prompt that it needs at least."""
    module: str | None = None
    """A module of finetune.extras that computes it; the recipe is refused where it isn't installed."""
    keys: tuple[str, ...] = ()
    """Keys of the recipe's evaluate section that only this metric reads."""
    check: Callable[[EvaluateSection], None] | None = None
    """Called before a model is asked anything. Raises FinetuneError where the section can't be honoured on
    this machine."""


def mean_of(values: Sequence[float]) -> Scorer:
    """The mean of a value for each row."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    return lambda weights: float(weights @ array / weights.sum())


def mean_over(values: Callable[[Measured], list[float]]) -> Callable[[Measured], Scorer]:
    """The scorer of a metric that is the mean over its rows."""
    return lambda measured: mean_of(values(measured))


def best_over_references(score: Callable[[str, str], float], answers: Sequence[Prediction]) -> list[float]:
    """The score of each answer with the reference that it fits best."""
    return [max(score(answer.said, other) for other in answer.question.expected) for answer in answers]
