"""Metrics of texts and labels in any script: equal texts are right, others in part, and English ones are
scored as ever."""

# ruff: noqa: RUF001 - letters of other scripts are meant
import importlib.util
import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from data_prep.messages import Conversation, Message
from finetune.errors import FinetuneError
from finetune.evaluation.report import by_row, report_of
from finetune.scoring.labels import label_in
from finetune.scoring.measured import Measured, Prediction, Question
from finetune.scoring.metrics.matches import squad_exact_match, squad_f1
from finetune.scoring.metrics.sacrebleu import bleu_tokenizer, sacrebleu_metric
from finetune.scoring.words import words

SCRIPTS = {
    "Latin": "Die Größe der Straße ist naïvement übertrieben.", "Cyrillic": "Кот сыт и доволен.",
    "Greek": "Η γάτα κοιμάται.", "Arabic": "القطة نائمة الآن؟", "Hebrew": "החתול ישן עכשיו.",
    "Devanagari": "बिल्ली सो रही है।", "Bengali": "বিড়াল ঘুমাচ্ছে।", "Tamil": "பூனை தூங்குகிறது.",
    "Georgian": "კატა სძინავს.", "Armenian": "Կատուն քնած է։", "Amharic": "ድመቷ ተኝታለች።",
    "Hangul": "고양이가 자고 있다.", "Chinese": "猫正在睡觉。", "Japanese": "猫はとても眠いです。", "Katakana": "コンピュータです",
    "Thai": "แมวกำลังนอนหลับ", "Lao": "ແມວກໍາລັງນອນ", "Khmer": "ឆ្មាកំពុងដេក", "Burmese": "ကြောင်အိပ်နေသည်",
    "Tibetan": "ཞི་མི་གཉིད།", "one word": "Ja", "one letter": "猫", "digits": "42", "signs": "?!",
    "emoji": "😀👍🏽",
}  # fmt: skip

OVERLAPS = [
    ("кот сыт", "кот спит", 1 / 2), ("猫坐着", "猫站着", 2 / 3), ("fur", "für", 0.0),
    ("für immer", "für heute", 1 / 2), ("แมวดำ", "แมวขาว", 2 * 3 / (5 + 6)),
    ("बिल्ली सोती है", "बिल्ली जागती है", 2 / 3), ("고양이가 자고", "고양이가 먹고", 1 / 2),
    ("The Größe", "the größe", 1.0), ("猫 cat 猫", "猫 dog 猫", 2 / 3),
    ("cafe\u0301 noir", "caf\u00e9 noir", 1.0),
]  # fmt: skip
"""Two texts, and the share of the words that they have in common, counted by hand."""


def answer(text: str, *references: str) -> Prediction:
    example = Conversation((Message("user", "?"), Message("assistant", references[0])))
    return Prediction(Question("rows.json:1", example, (1, 2), references), (text,))


def value(name: str, *answers: Prediction) -> float:
    return report_of(Measured(answers=list(answers)), [name], intervals=False).values[name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_equal_texts_are_right(script: str) -> None:
    """By every metric of texts, as one row and as a corpus, whatever the script and however short."""
    same = answer(SCRIPTS[script], SCRIPTS[script])
    for name, whole in {
        "exact_match": 1,
        "squad_exact_match": 1,
        "squad_f1": 1,
        "rouge1": 1,
        "rouge2": 1,
        "rougeL": 1,
    }.items():
        assert value(name, same) == whole, name
    for name in ("bleu", "chrf"):
        assert value(name, same) == pytest.approx(100), name
        assert by_row(name, Measured(answers=[same])) == [pytest.approx(100)]


@pytest.mark.parametrize(("said", "wanted", "share"), OVERLAPS)
def test_rouge_counts_the_words_of_any_script(said: str, wanted: str, share: float) -> None:
    """F1 over words, and over letters where a script has no blanks between words."""
    assert value("rouge1", answer(said, wanted)) == pytest.approx(share)


def test_words_by_hand() -> None:
    """Letters with their marks; joiners stay inside words; signs part them; digits are words."""
    assert words("naïve, CO2 & 3,5 %_x") == ["naïve", "CO2", "3", "5", "x"]
    assert words("मैं हिन्दी") == ["मैं", "हिन्दी"]
    assert words("می\u200cخواهم") == ["می\u200cخواهم"]
    assert words("กำลัง") == ["ก", "ำ", "ลั", "ง"]
    assert words("GPT-4は2023年に出た") == ["GPT", "4", "は", "2023", "年", "に", "出", "た"]
    assert words("") == words("—…") == []


@given(st.text(st.characters(max_codepoint=126)), st.text(st.characters(max_codepoint=126)))
def test_rouge_of_ascii_is_googles(said: str, wanted: str) -> None:
    """Of ASCII texts that differ the figures are rouge-score's own, stemmed."""
    for name in ("rouge1", "rouge2", "rougeL"):
        own = RougeScorer([name], use_stemmer=True).score(wanted, said)[name].fmeasure
        assert value(name, answer(said, wanted)) == (1.0 if said.strip() == wanted.strip() else own)


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (["The cat sat."], "13a"), (["Кот сыт."], "13a"), (["고양이가 자고 있다."], "13a"), (["猫坐着。"], "zh"),
        (["看 the cat"], "zh"),
        (["猫はとても眠い"], "char"), (["แมวกำลังนอน"], "char"), (["ข้อ 3"], "char"), (["the word แมว means a cat"], "13a"),
        (["the word 猫 means a cat"], "zh"), (["", "猫"], "zh"), ([""], "13a"), (["Über 猫の話をする"], "char"),
    ],
)  # fmt: skip
def test_the_tokenizer_follows_the_references(references: list[str], tokenizer: str) -> None:
    """sacrebleu's default of the language, and char where that has none that is always there."""
    assert bleu_tokenizer(references) == tokenizer


ENGLISH = [
    ("The cat sat on the mat today.", "The cat sat on a mat today."),
    ("It rains in Berlin.", "It is raining in Berlin."),
]
CHINESE = [("猫坐在垫子上。", "猫正坐在垫子上。"), ("柏林在下雨。", "今天柏林下雨。")]
JAPANESE = [("猫はマットの上に座った。", "猫がマットの上に座っている。")]


@pytest.mark.parametrize(("pairs", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh"), (JAPANESE, "char")])
def test_bleu_of_one_language_is_sacrebleus(pairs: list[tuple[str, str]], tokenizer: str) -> None:
    """The corpus' figure with that tokenizer, and the signature says which."""
    own = sacrebleu.corpus_bleu(
        [said for said, _ in pairs], [[wanted for _, wanted in pairs]], tokenize=tokenizer
    ).score
    report = report_of(Measured(answers=[answer(*pair) for pair in pairs]), ["bleu"], intervals=False)
    assert report.values["bleu"] == pytest.approx(own)
    assert 0 < own < 100
    assert f"|tok:{tokenizer}|" in f"|{report.scores['bleu'].signature}|"


def test_bleu_of_several_languages_cuts_each_row_by_its_own() -> None:
    """The figure is that of texts which sacrebleu's tokenizers have cut before, row by row."""
    rows = [(ENGLISH, "13a"), (CHINESE, "zh"), (JAPANESE, "char")]
    cut = [
        [sacrebleu_metric(name).tokenizer(text) for text in pair] for pairs, name in rows for pair in pairs
    ]
    own = sacrebleu.corpus_bleu(
        [said for said, _ in cut], [[wanted for _, wanted in cut]], tokenize="none", force=True
    ).score
    answers = [answer(*pair) for pairs, _ in rows for pair in pairs]
    report = report_of(Measured(answers=answers), ["bleu"], intervals=False)
    assert report.values["bleu"] == pytest.approx(own)
    assert "tok:13a+char+zh" in report.scores["bleu"].signature
    # A base that answers in another language is cut by the same references.
    assert value("bleu", answer("the cat", "猫坐在垫子上。")) == 0.0


def test_a_named_tokenizer_cuts_every_row() -> None:
    """evaluate.bleu_tokenizer is sacrebleu's, for all rows; one that is not installed is refused by name."""
    measured = Measured(answers=[answer(*pair) for pair in ENGLISH + CHINESE], bleu_tokenizer="char")
    report = report_of(measured, ["bleu"], intervals=False)
    pairs = ENGLISH + CHINESE
    own = sacrebleu.corpus_bleu(
        [said for said, _ in pairs], [[wanted for _, wanted in pairs]], tokenize="char"
    ).score
    assert report.values["bleu"] == pytest.approx(own)
    assert "|tok:char|" in report.scores["bleu"].signature
    if importlib.util.find_spec("MeCab") is None:
        with pytest.raises(
            FinetuneError, match=r'bleu_tokenizer ja-mecab is not there .*pip install "sacrebleu\[ja\]"'
        ):
            sacrebleu_metric("ja-mecab")


def test_bleu_of_short_texts_is_no_accident_of_the_draw() -> None:
    """Each resample of equal short texts has 100, so that the interval is as narrow as the figure is sure."""
    score = report_of(Measured(answers=[answer("Ja.", "Ja."), answer("Nein", "Nein")]), ["bleu"]).scores[
        "bleu"
    ]
    assert np.allclose(score.samples, 100)
    assert not math.isnan(score.interval.low)


@pytest.mark.parametrize(
    ("said", "wanted", "exact", "f1"),
    [
        ("巴黎。", "巴黎", 1.0, 1.0), ("在巴黎", "巴黎", 0.0, 0.8), ("¿Dónde?", "dónde", 1.0, 1.0),
        ("Париж!", "париж", 1.0, 1.0),
        ("«Die Größe»", "die größe", 1.0, 1.0), ("หลับ ๆ", "หลับ", 0.0, pytest.approx(6 / 7)), ("بغداد؟", "بغداد", 1.0, 1.0),
        ("मुंबई।", "मुंबई", 1.0, 1.0), ("the Eiffel Tower", "Eiffel tower.", 1.0, 1.0),
        ("cafe\u0301", "caf\u00e9", 1.0, 1.0),
    ],
)  # fmt: skip
def test_squads_rules_in_other_scripts(said: str, wanted: str, exact: float, f1: float) -> None:
    """Punctuation of any script goes; letters count where there are no blanks, by hand."""
    assert squad_exact_match(said, wanted) == exact
    assert squad_f1(said, wanted) == f1


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("正面", "正面"), ("正面的评价", "正面"), ("负面。", "负面"), ("正", None), ("非常正面", "非常正面"), ("บวกมาก", "บวก"),
        ("Положительный отзыв", "положительный"), ("положительных", None), ("सकारात्मक।", "सकारात्मक"), ("सकारात्मकता", None),
        ("cafe\u0301 noir", "caf\u00e9"), ("긍정 입니다", "긍정"), ("긍정적", None), ("POSITIVE的", "positive"), ("क", "क"),
        ("कि", None),
    ],
)  # fmt: skip
def test_labels_in_other_scripts(text: str, label: str | None) -> None:
    """A label ends where a word can: anywhere between letters of a script without blanks, never before a
    vowel sign."""
    labels = (
        "正面",
        "非常正面",
        "负面",
        "บวก",
        "положительный",
        "सकारात्मक",
        "caf\u00e9",
        "긍정",
        "positive",
        "क",
    )
    assert label_in(text, labels) == label
