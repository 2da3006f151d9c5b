"""Answers that equal a reference, or share its words: the best of a question's references counts."""

import collections
import re
import string
import unicodedata
from collections.abc import Callable

from finetune.scoring.measured import Measured
from finetune.scoring.metrics.base import Metric, best_over_references, mean_over
from finetune.scoring.words import apart, composed


def exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal, blanks around both aside."""
    return float(answer.strip() == reference.strip())


def squad_normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks (Rajpurkar et al. 2016, arXiv:1606.05250).

    Punctuation is that of all scripts, as in MLQA (Lewis et al. 2020, arXiv:1910.07475).
    """
    bare = "".join(character for character in composed(text).lower() if not _is_punctuation(character))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] == "P"


def squad_exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal as SQuAD reads them."""
    return float(squad_normalised(answer) == squad_normalised(reference))


def squad_f1(answer: str, reference: str) -> float:
    """The F1 of the words that the two share, as SQuAD reads them; of two that have none, 1 where both are
    empty.

    A letter counts as a word where its script has no blanks between words, as MLQA counts Chinese.
    """
    given, wanted = (apart(squad_normalised(text)).split() for text in (answer, reference))
    shared = sum((collections.Counter(given) & collections.Counter(wanted)).values())
    if not given or not wanted:
        return float(given == wanted)
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _best(name: str, score: Callable[[str, str], float], by: str) -> Metric:
    def values(measured: Measured) -> list[float]:
        return best_over_references(score, measured.answers)

    return Metric(
        name,
        "answers",
        mean_over(values),
        "generated answers, the best of a question's references",
        by=by,
        by_row=values,
    )


SQUAD = "SQuAD's rules (arXiv:1606.05250), for other scripts MLQA's (arXiv:1910.07475)"

EXACT_MATCH = _best("exact_match", exact_match, "equal, blanks around them aside")
SQUAD_EXACT_MATCH = _best("squad_exact_match", squad_exact_match, SQUAD)
SQUAD_F1 = _best("squad_f1", squad_f1, SQUAD)
