"""A metric that is added is one value: docs/extending_metrics.md as it stands, and one that is made up
here."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.reference import recipe_schema
from finetune.scoring import metrics
from finetune.scoring.measured import Measured
from finetune.scoring.metrics.base import Metric, mean_over
from finetune.scoring.metrics.tables import head_table, metric_table
from tests.support.cli import Says
from tests.support.manual import module_of, table_of
from tests.support.models import MEMORISED

RECIPE = """
model: {{base: {base}}}
data:
  train: [{{path: {rows}, format: prompt_completion}}]
  evaluation: {{fraction: 0.5}}
  max_length_tokens: 64
train: {{precision: fp32}}
evaluate: {{metrics: [{metrics}], max_new_tokens: 64}}
"""


def far_from(measured: Measured) -> list[float]:
    """How many characters longer or shorter than its reference each answer is."""
    return [float(abs(len(answer.said) - len(answer.question.expected[0]))) for answer in measured.answers]


FAR = Metric(
    "length_error",
    "answers",
    mean_over(far_from),
    "generated answers",
    scale="characters",
    by_row=far_from,
    higher_is_better=False,
    best=0.0,
    fits=("text", "single_label"),
    samples=2,
)


def add(monkeypatch: pytest.MonkeyPatch, metric: Metric) -> None:
    """One more in the tuple."""
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, metric))


@pytest.fixture
def of_the_page(monkeypatch: pytest.MonkeyPatch) -> Metric:
    """The page's metric, in the registry."""
    found = module_of("extending_metrics").CONTAINS
    add(monkeypatch, found)
    assert isinstance(found, Metric)
    return found


@pytest.fixture
def recipe(memorised: Path, tmp_path: Path) -> Callable[[str], str]:
    """recipe("loss, bleu") -> a recipe with these metrics, on questions that a tiny model knows the answers
    of."""
    turns = [("user", "prompt"), ("assistant", "completion")]
    rows = [
        {column: [{"role": role, "content": text}] for (role, column), text in zip(turns, pair, strict=True)}
        for pair in MEMORISED.items()
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(names: str) -> str:
        path = tmp_path / "r.yaml"
        path.write_text(RECIPE.format(base=memorised, rows=tmp_path / "rows.jsonl", metrics=names))
        return str(path)

    return write


def test_the_pages_metric_is_measured(
    of_the_page: Metric, recipe: Callable[[str], str], memorised: Path, says: Says
) -> None:
    """A tiny model's answers have it, on its scale, beside exact match; answers of its best value are not
    among the worst."""
    path = recipe("exact_match, contains")
    code, shown = says("evaluate", str(memorised), path, "--json")
    assert code == 0
    found = json.JSONDecoder().raw_decode(shown)[0]["metrics"]
    assert found["contains"]["value"] == 100 * found["exact_match"]["value"] > 0
    assert found["contains"]["rows"] == found["exact_match"]["rows"]
    code, shown = says("evaluate", str(memorised), recipe("contains"), "--worst", "3")
    assert code == 0
    assert f"answers has contains {of_the_page.best:.2f}" in shown
    assert (
        "| `contains` | generated answers, the best of a question's references | 0 to 100 |" in metric_table()
    )


def test_one_more_in_the_tuple_is_everywhere(
    recipe: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, memorised: Path, says: Says
) -> None:
    """Rules, schema, tables and reports have a made-up metric by its declaration; before, its name is
    refused."""
    path = recipe("length_error")
    with pytest.raises(RecipeError, match="got 'length_error', expected loss, "):
        load_recipe(path)
    add(monkeypatch, FAR)
    with pytest.raises(RecipeError, match="length_error needs at least 2 answers a prompt"):
        load_recipe(path)
    with pytest.raises(
        RecipeError, match=r"got 'lenght_error', .*pass@10 or length_error; did you mean length_error\?"
    ):
        load_recipe(recipe("lenght_error"))
    with pytest.raises(
        RecipeError, match=r"train\.best_by  got 'length_eror', .* did you mean length_error\?"
    ):
        load_recipe(recipe("loss"), ["train.best_by=length_eror"])
    with pytest.raises(RecipeError, match="has accuracy, f1_macro, f1_micro, length_error, loss, matthews"):
        load_recipe(recipe("bleu"), ["model.head={problem: single_label, labels: [a, b]}"])
    assert (
        recipe_schema()["$defs"]["EvaluateSection"]["properties"]["metrics"]["items"]["enum"][-1]
        == "length_error"
    )
    assert head_table().count("`length_error`") == 1
    assert metrics.lower_is_better("length_error")


def test_a_misspelt_metric_is_found_where_it_is_written(recipe: Callable[[str], str]) -> None:
    """Line and column of the item of the list, all names, and the one that was probably meant."""
    with pytest.raises(
        RecipeError, match=r"r\.yaml:8:\d+  evaluate\.metrics\.1  got 'blue', .* did you mean bleu\?"
    ):
        load_recipe(recipe("loss, blue"))


def test_the_page_names_what_a_metric_says() -> None:
    """Each word of its table is one of Metric's, and each of Metric's is in it."""
    table = table_of("extending_metrics")
    told = set(re.findall(r"`(\w+)`", table)) - {"losses", "answers", "likelihoods", "programs", "text"}
    assert told == set(Metric.__dataclass_fields__)
