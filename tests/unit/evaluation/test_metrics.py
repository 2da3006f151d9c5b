"""The table of metrics: each beside the library or the formula that it comes from, and under any weighting of
the rows."""

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from data_prep.messages import Conversation, Message
from finetune.errors import FinetuneError
from finetune.evaluation.report import by_row, difference, report_of, worst_first
from finetune.evaluation.sandbox.programs import exit_in
from finetune.recipe.reference import recipe_schema
from finetune.scoring.labels import Labels
from finetune.scoring.measured import LossSum, Measured, Prediction, Question, Verdict
from finetune.scoring.metrics import METRICS, metric_of
from finetune.scoring.metrics.labels import Labelled, f1, matthews
from finetune.scoring.metrics.matches import squad_exact_match, squad_f1
from finetune.scoring.metrics.numbers import numbers as number_pairs

TEXTS = (
    ("The cat sat on the mat.", ("The cat sat on a mat.", "A cat was sitting on the mat.")),
    ("It rains in Berlin today", ("It is raining in Berlin today.",)),
    ("", ("Nothing to see here.",)),
    (
        "the committee approved the new budget on Monday",
        ("On Monday the committee approved the new budget.",),
    ),
    ("entirely different words", ("no overlap whatsoever",)),
)
LABELS = ("negative", "neutral", "positive")


def answer(text: str, references: tuple[str, ...], likelihoods: tuple[float, ...] = ()) -> Prediction:
    example = Conversation((Message("user", "?"), Message("assistant", references[0])))
    return Prediction(Question("rows.json:1", example, (1, 2), references), (text,), likelihoods)


def texts() -> Measured:
    return Measured(answers=[answer(*pair) for pair in TEXTS])


def labels() -> Measured:
    said = ["negative", "Positive.", "neutral", "positive", "dunno", "neutral", "negative"]
    right = ["negative", "positive", "positive", "positive", "neutral", "neutral", "neutral"]
    likely = [
        tuple(float(name == word) for name in LABELS)
        for word in ("negative", *right[1:5], "negative", "negative")
    ]
    return Measured(
        answers=[answer(a, (b,), c) for a, b, c in zip(said, right, likely, strict=True)],
        labels=Labels(LABELS),
    )


def numbers() -> Measured:
    pairs = [(1.0, 1.5), (2.0, 1.0), (3.5, 4.0), (4.0, 3.0), (0.0, -1.0)]
    return Measured(answers=[answer(repr(said), (repr(right),)) for right, said in pairs])


def losses() -> Measured:
    return Measured(
        losses=[LossSum(3.0, 2, 2.0), LossSum(8.0, 4, 4.0), LossSum(0.5, 1, 1.0)], bytes=[7, 20, 3]
    )


def programs() -> Measured:
    passed = [(True, False, True, *[False] * 7), tuple([False] * 10), tuple([True] * 10)]
    return Measured(programs=[tuple(Verdict(ok, "") for ok in row) for row in passed])


def measured_for(name: str) -> Measured:
    if metric_of(name).of == "losses":
        return losses()
    if metric_of(name).of == "general":
        return Measured(general=losses().losses)
    if metric_of(name).of == "programs":
        return programs()
    if name == "reward_auc":
        return Measured(rewards=[(2.0, 1.0), (0.5, 0.0), (-1.0, 1.0), (0.5, 1.0), (0.25, 0.0)])
    if metric_of(name).of == "rewards":
        return Measured(rewards=[(2.0, 1.0), (0.5, 0.5), (-1.0, 3.0), (0.25, -4.0)])
    if name in ("mean_squared_error", "mean_absolute_error", "pearson"):
        return numbers()
    return (
        labels()
        if name.removeprefix("likelihood_") in ("accuracy", "f1_macro", "f1_micro", "matthews")
        else texts()
    )


def value(name: str, measured: Measured) -> float:
    return report_of(measured, [name], intervals=False).scores[name].value


def repeated(measured: Measured, weights: list[int]) -> Measured:
    """Each row so often as its weight says."""

    def times(rows: list) -> list:
        return [row for row, weight in zip(rows, weights, strict=False) for _ in range(weight)]

    return Measured(
        losses=times(measured.losses), general=times(measured.general), bytes=times(measured.bytes), answers=times(measured.answers),
        labels=measured.labels, programs=times(measured.programs),
        rewards=times(measured.rewards),
    )  # fmt: skip


def test_the_table_has_every_name_of_the_recipe() -> None:
    """No metric can be named in a recipe that isn't computed, and none is computed that can't be named."""
    names = [metric.name for metric in METRICS]
    sections = recipe_schema()["$defs"]
    assert sections["EvaluateSection"]["properties"]["metrics"]["items"]["enum"] == names
    assert sections["TrainSection"]["properties"]["best_by"]["anyOf"][0]["enum"] == names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", [metric.name for metric in METRICS])
def test_a_weighted_metric_is_that_of_repeated_rows(name: str) -> None:
    """Counting a row twice gives what the metric gives where the row stands there twice; so resamples are
    right."""
    measured = measured_for(name)
    rows = measured.count(metric_of(name).of)
    weights = [(3 * index + 1) % 4 for index in range(rows)]
    weighted = metric_of(name).scorer(measured)(np.array(weights))
    assert weighted == pytest.approx(value(name, repeated(measured, weights)), rel=1e-9)
    assert weighted != pytest.approx(value(name, measured), rel=1e-9) or name == "exact_match"


def test_the_area_under_the_curve_is_counted_pair_by_pair() -> None:
    """Of a good and a bad answer; a tie is one half, and with one judgement alone there are none."""
    measured = measured_for("reward_auc")
    good, bad = ([reward for reward, judged in measured.rewards if judged == which] for which in (1.0, 0.0))
    wins = [(one > other) + 0.5 * (one == other) for one in good for other in bad]
    assert value("reward_auc", measured) == sum(wins) / len(wins) == 3.5 / 6
    assert np.isnan(value("reward_auc", Measured(rewards=[(1.0, 1.0)])))


@pytest.mark.parametrize(("name", "scale"), [("bleu", 100), ("chrf", 100)])
def test_corpus_metrics_are_sacrebleus(name: str, scale: int) -> None:
    """BLEU and chrF equal sacrebleu's corpus_score, with a different number of references for each row."""
    from sacrebleu.metrics import BLEU, CHRF

    streams = [[refs[number] if number < len(refs) else None for _, refs in TEXTS] for number in range(2)]
    metric = BLEU() if name == "bleu" else CHRF()
    expected = metric.corpus_score([text for text, _ in TEXTS], streams).score
    assert 0 < expected < scale
    assert value(name, texts()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_scores(name: str) -> None:
    """The mean over rows of rouge-score's F with the reference that fits best; an empty answer is 0."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=True)
    best = [max(scorer.score(reference, text)[name].fmeasure for reference in refs) for text, refs in TEXTS]
    assert value(name, texts()) == pytest.approx(sum(best) / len(best))
    alone = by_row(name, texts())
    assert alone is not None
    assert alone == pytest.approx(best)
    assert alone[2] == 0.0


def test_squads_rules() -> None:
    """Case, punctuation, articles and blanks don't count; F1 counts shared words; nothing equals nothing."""
    assert squad_exact_match("The Denver Broncos.", "denver  broncos") == 1.0
    assert squad_f1("the Denver Broncos won", "Denver Broncos") == pytest.approx(0.8)
    assert squad_f1("Carolina", "Denver Broncos") == 0.0
    assert (squad_f1("", "a"), squad_f1("", "Denver")) == (1.0, 0.0)
    assert value(
        "squad_f1", Measured(answers=[answer("Broncos", ("Panthers", "Denver Broncos"))])
    ) == pytest.approx(2 / 3)


def test_label_metrics_are_scikit_learns() -> None:
    """Accuracy, F1 and Matthews over the labels that answers name; an answer without one is wrong, and no
    class of its own."""
    right, said = [0, 2, 2, 2, 1, 1, 1], [0, 2, 1, 2, 3, 1, 0]
    assert value("accuracy", labels()) == pytest.approx(4 / 7)
    assert value("f1_macro", labels()) == pytest.approx(
        f1_score(right, said, labels=[0, 1, 2], average="macro")
    )
    assert value("f1_micro", labels()) == pytest.approx(
        f1_score(right, said, labels=[0, 1, 2], average="micro")
    )
    assert value("matthews", labels()) == pytest.approx(matthews_corrcoef(right, said))
    assert value("likelihood_accuracy", labels()) == pytest.approx(5 / 7)


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize(("names", "several"), [(2, False), (5, False), (4, True), (1, True)])
def test_f1_of_a_draw_is_scikit_learns(average: Literal["macro", "micro"], names: int, several: bool) -> None:
    """For any weights of the rows; labels that no row has are among them, and answers that name none."""
    draw = np.random.default_rng(names)
    labels = Labels(tuple("abcde"[:names]), several=several)
    for rows in (1, 3, 40):
        shape, extra = ((rows, names), 0) if several else ((rows,), 1)
        high = 2 if several else names
        right, said = draw.integers(0, high, shape), draw.integers(0, high + extra, shape)
        weights = draw.integers(0, 3, rows) + (np.arange(rows) == 0)
        options: dict[str, Any] = {"labels": list(range(names)), "average": average, "zero_division": 0}
        ours = f1(average)(Labelled(right, said, labels))(weights)
        if several and names == 1:  # scikit-learn takes one column for two classes
            right, said, options["labels"] = right[:, 0], said[:, 0], [1]
        assert ours == pytest.approx(f1_score(right, said, sample_weight=weights, **options), abs=1e-12)


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_matthews_of_a_draw_is_scikit_learns() -> None:
    """For any weights of the rows; where one class is alone it is 0."""
    draw = np.random.default_rng(0)
    for rows in (1, 2, 3, 40, 40, 40):
        right, said = draw.integers(0, 3, rows), draw.integers(0, 4, rows)
        weights = draw.integers(0, 3, rows) + (np.arange(rows) == 0)
        ours = matthews(Labelled(right, said, Labels(LABELS)))(weights)
        theirs = matthews_corrcoef(right, said, sample_weight=weights)
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_losses() -> None:
    """The mean is over tokens, not rows; perplexity is e to its power; bits per byte are nats / ln 2 /
    bytes."""
    assert value("loss", losses()) == pytest.approx(11.5 / 7)
    assert value("perplexity", losses()) == pytest.approx(math.exp(11.5 / 7))
    assert value("bits_per_byte", losses()) == pytest.approx(11.5 / math.log(2) / 30)
    with pytest.raises(FinetuneError, match="bits_per_byte"):
        value("bits_per_byte", Measured(losses=[LossSum(1.0, 1, 1.0)], bytes=[0]))


def test_numbers() -> None:
    """Squared and absolute error, and Pearson's correlation, by numpy; a constant has no correlation."""
    right, said = number_pairs(numbers())
    assert value("mean_squared_error", numbers()) == pytest.approx(np.mean((right - said) ** 2))
    assert value("mean_absolute_error", numbers()) == pytest.approx(np.mean(abs(right - said)))
    assert value("pearson", numbers()) == pytest.approx(np.corrcoef(right, said)[0, 1])
    assert math.isnan(value("pearson", Measured(answers=[answer("1.0", ("2.0",))] * 3)))


def test_pass_at_k() -> None:
    """2 of 10 right: pass@1 is 0.2 and pass@5 is 1 - C(8,5)/C(10,5); over rows it is their mean."""
    assert value("pass@1", programs()) == pytest.approx((0.2 + 0 + 1) / 3)
    assert value("pass@5", programs()) == pytest.approx((1 - math.comb(8, 5) / math.comb(10, 5) + 0 + 1) / 3)


def test_the_worst_come_first() -> None:
    """By a metric that falls the largest come first, by one that rises the smallest."""
    assert [index for index, _ in worst_first("mean_squared_error", numbers())][-1] in (0, 2)
    assert worst_first("rouge1", texts())[0] == (2, 0.0)


def test_empty_and_unlike_answers_are_counted() -> None:
    """Empty answers, and those that name no label, are said."""
    assert report_of(texts(), ["bleu"], intervals=False).notes == ("1 of 5 answers are empty",)
    notes = report_of(labels(), ["accuracy"], intervals=False).notes
    assert notes == ("1 of 7 answers begin with none of the labels: they count as wrong",)


def test_a_right_answer_is_never_the_worst() -> None:
    """Metrics of the whole that say nothing of a row alone give no number for it; BLEU of a short right
    answer is 100."""
    assert by_row("bleu", Measured(answers=[answer("Ada", ("Ada",))])) == pytest.approx([100.0])
    assert by_row("accuracy", labels()) == [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    for name in ("f1_macro", "matthews", "pearson", "loss"):
        assert by_row(name, measured_for(name)) is None
        assert worst_first(name, measured_for(name)) == []


def test_models_on_other_rows_are_not_compared() -> None:
    """As many rows are not the same rows: there is no difference then."""
    one, other = texts(), texts()
    other.answers[0] = replace(
        other.answers[0], question=replace(other.answers[0].question, place="rows.json:9")
    )
    scores = [report_of(measured, ["chrf"]).scores["chrf"] for measured in (one, texts(), other)]
    assert difference(scores[0], scores[1]) is not None
    assert difference(scores[0], scores[2]) is None


@pytest.mark.parametrize(
    ("tests", "found"),
    [
        ("import unittest\nunittest.main()", "unittest.main"),
        ("unittest.main(argv=['x'], exit=False)", "unittest.main"),
        ("if __name__ == '__main__':\n    import sys\n    sys.exit(f(1) != 2)", "sys.exit"),
        ("assert f(1) == 2  # no exit()", None),
        ("assert plan.exit(2) == 'quit()'", None),
        ("assert (", None),
    ],
)
def test_tests_that_end_the_program_are_found(tests: str, found: str | None) -> None:
    """They would fail every program, or pass any."""
    assert exit_in(tests) == found
