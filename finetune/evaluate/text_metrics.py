"""How near generated texts come to their references, by the libraries that the field compares with.

A metric of the whole looks at all answers once and gives a Scorer: the metric for any weighting of them
(finetune.evaluate.bootstrap). The others are means of a value for each answer.
"""

import collections
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune.evaluate.answers import Answer
from finetune.evaluate.bootstrap import Scorer


def mean_of(values: Sequence[float]) -> Scorer:
    """The mean of a value for each row."""
    array = np.asarray(values, dtype=np.float64)
    return lambda weights: float(weights @ array / weights.sum())


def best_over_references(score: Callable[[str, str], float], answers: Sequence[Answer]) -> list[float]:
    """The score of each answer with the reference that it fits best."""
    return [max(score(answer.text, other) for other in answer.question.references) for answer in answers]


def exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal, blanks around both aside."""
    return float(answer.strip() == reference.strip())


def squad_normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def squad_exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal as SQuAD reads them."""
    return float(squad_normalised(answer) == squad_normalised(reference))


def squad_f1(answer: str, reference: str) -> float:
    """The F1 of the words that the two share, as SQuAD reads them; of two that have none, 1 where both are empty."""
    given, wanted = squad_normalised(answer).split(), squad_normalised(reference).split()
    shared = sum((collections.Counter(given) & collections.Counter(wanted)).values())
    if not given or not wanted:
        return float(given == wanted)
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def bleu(answers: Sequence[Answer]) -> Scorer:
    """BLEU of the whole (Papineni et al. 2002), by sacrebleu, tokenised as WMT does (13a)."""
    from sacrebleu.metrics import BLEU

    return _corpus_metric(BLEU(), answers)


def chrf(answers: Sequence[Answer]) -> Scorer:
    """chrF of the whole (Popović 2015), by sacrebleu."""
    from sacrebleu.metrics import CHRF

    return _corpus_metric(CHRF(), answers)


def sentence_bleu(answers: Sequence[Answer]) -> list[float]:
    """BLEU of each answer alone, by sacrebleu, over the n-grams that it is long enough for."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(effective_order=True)
    return [float(metric.sentence_score(answer.text, list(answer.question.references)).score) for answer in answers]


def sentence_chrf(answers: Sequence[Answer]) -> list[float]:
    """chrF of each answer alone, by sacrebleu."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    return [float(metric.sentence_score(answer.text, list(answer.question.references)).score) for answer in answers]


def _corpus_metric(metric: Any, answers: Sequence[Answer]) -> Scorer:
    """A metric of sacrebleu from its counts for each row, which add up; its own bootstrap goes the same way.

    The two methods are those that sacrebleu's base class asks of each metric; a test holds them to corpus_score.
    """
    most = max(len(answer.question.references) for answer in answers)
    references = [
        [refs[number] if number < len(refs := answer.question.references) else None for answer in answers]
        for number in range(most)
    ]
    counts = np.array(metric._extract_corpus_statistics([answer.text for answer in answers], references), dtype=np.float64)

    def score(weights: np.ndarray) -> float:
        return float(metric._compute_score_from_stats((weights @ counts).tolist()).score)

    return score


def rouge(name: str, answers: Sequence[Answer]) -> list[float]:
    """The F1 of rouge1, rouge2 or rougeL (Lin 2004) with the best reference, stemmed, by Google's rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    measure = RougeScorer([name], use_stemmer=True)
    pairs = ((list(answer.question.references), answer.text) for answer in answers)
    return [float(measure.score_multi(*pair)[name].fmeasure) for pair in pairs]
