"""The sweep section: what may be varied, by what trials are judged, and where the reader says what is wrong."""

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.load import load_recipe
from tests.support.recipes import found

BESIDE = "data: {evaluation: {fraction: 0.1}}"


def problems(space: str, rest: str = "trials: 4", beside: str = BESIDE) -> list[str]:
    """What the rules have against a space."""
    return found("{sweep: {space: {" + space + "}, " + rest + "}, " + beside + "}")


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ("train.learning_rate: {log_uniform: [1e-5, 1e-2]}", None),
        (
            "train.learning_rate: {log_uniform: [1e-5, 20.0]}",
            "sweep.space.train.learning_rate.log_uniform  got 20.0, expected at most 10",
        ),
        ("train.learning_rte: {uniform: [0, 1]}", "sweep.space.train.learning_rte.uniform  unknown key; did"),
        ("train.learning_rate.high: {uniform: [0, 1]}", "has no key high"),
        ("data.train.3.rows: {choice: [9]}", "sweep.space.data.train.3.rows.choice  expected an index from 0 to 0"),
        ("adapter.rank: {int_uniform: [64, 4]}", "expected [LOW, HIGH], the lower one first"),
        ("train.weight_decay: {log_uniform: [0, 1]}", "expected more than 0"),
        ("adapter.rank: {choice: [4], int_uniform: [1, 2]}", "got int_uniform and choice"),
        ("adapter.rank: {}", "got none of them"),
        ("adapter.rank: {choice: [4, 8], step: 2}", "sweep.space.adapter.rank.step  only int_uniform has it"),
        ("adapter.rank: {choice: [4, 4]}", "a value stands there twice"),
        ("train.optimizer: {choice: [adamw, adamq]}", "got 'adamq', expected adamw"),
        ("adapter.target_modules: {choice: [all-linear, [q_proj, v_proj]]}", None),
        ("output.folder: {choice: [a]}", "a sweep can't vary output"),
        ("train.max_steps: {choice: [3]}, train: {choice: [{}]}", "train, which holds it, is varied too"),
        ("adapter.alpha: {choice: [1], when: {adapter.rank: 2}}", "got 'adapter.rank', expected adapter.alpha"),
        ("adapter.alpha: {choice: [1], when: {adapter.alpha: 1}}", "the conditions go in a circle"),
        (
            "adapter.alpha: {choice: [1], when: {adapter.rank: [4, 5]}}, adapter.rank: {choice: [4, 8]}",
            "sweep.space.adapter.alpha.when.adapter.rank  5 is none of its values",
        ),
        (
            "adapter.method: {choice: [lora, full]}, adapter.rank: {choice: [4], when: {adapter.method: lora}}",
            None,
        ),
        ("adapter.method: {choice: [full, lora]}, adapter.rank: {choice: [4], when: {adapter.method: full}}",
         "sweep.space.adapter.rank.choice  method full trains all weights"),
    ],
)  # fmt: skip
def test_the_space_names_keys_and_values_of_a_recipe(space: str, problem: str | None) -> None:
    """Each value is judged by the schema and the rules, beside the rest of the recipe."""
    said = problems(space)
    assert (problem is None and said == []) or (problem is not None and problem in said[0])


GRID = "train.learning_rate: {log_uniform: [1e-5, 1e-2], points: 4}, adapter.rank: {choice: [4, 8]}"
RATE = "train.learning_rate: {log_uniform: [1e-5, 1e-2]}"
EVERY = BESIDE + ", train: {evaluate_every: 5}"


@pytest.mark.parametrize(
    ("space", "rest", "beside", "problem"),
    [
        (RATE, "sampler: tpe", BESIDE, "sweep  when does it end?"),
        (RATE, "hours: 0.5", BESIDE, None),
        (GRID, "sampler: grid", BESIDE, None),
        (GRID, "sampler: grid, trials: 7", BESIDE, "sweep.space  the grid has 8 combinations, and sweep.trials is 7"),
        (RATE, "sampler: grid", BESIDE, "sweep.space.train.learning_rate  a grid takes single values: set points"),
        (GRID, "trials: 7", BESIDE, "points  only uniform and log_uniform under sampler grid"),
        ("train.seed: {int_uniform: [1, 101]}", "sampler: grid", BESIDE, "the grid has 101 combinations, and without"),
        (RATE, "trials: 2, sampler: cma-es", BESIDE, "sweep.sampler  cma-es searches two numbers or more"),
        (RATE, "trials: 2, objectives: [accuracy]", BESIDE, "sweep.objectives.0  accuracy is not measured"),
        (RATE, "trials: 2, objectives: [acuracy]", BESIDE, "did you mean accuracy?"),
        (RATE, "trials: 2", "train: {}", "sweep.objectives  trials are judged on evaluation rows"),
        (RATE, "trials: 2, pruner: {}", BESIDE, "sweep.pruner  trials are stopped at evaluations"),
        (RATE, "trials: 2, pruner: {}", EVERY, None),
        (RATE, "trials: 2, pruner: {}, objectives: [loss, perplexity]", EVERY, "sweep.pruner  of several objectives"),
        (
            RATE, "trials: 2, pruner: {method: median, reduction_factor: 4}", EVERY,
            "sweep.pruner.reduction_factor  only halving and hyperband",
        ),
        (
            RATE, "trials: 2, pruner: {}, objectives: [chrf]", EVERY + ", evaluate: {metrics: [chrf]}",
            "sweep.objectives.0  chrf is measured at the end only",
        ),
        (
            RATE, "trials: 2, repeats: {sources: [{generated: orders}]}", BESIDE,
            "sweep.repeats.sources.0  these are rows of data.train, which trained",
        ),
    ],
)  # fmt: skip
def test_a_search_can_be_carried_out(space: str, rest: str, beside: str, problem: str | None) -> None:
    """Budget, sampler, pruner, objectives and repeats fit one another and the recipe."""
    said = problems(space, rest, beside)
    assert (problem is None and said == []) or (problem is not None and problem in said[0])


def test_what_is_wrong_with_a_space_is_located(tmp_path: Path) -> None:
    """Line and column of the value, although the key itself has dots."""
    path = tmp_path / "r.yaml"
    path.write_text(
        "extends: quickstart\nsweep:\n  trials: 2\n  space:\n    train.learning_rate: {log_uniform: [1e-5, 20]}\n"
        "    adapter.rank: {choice: [4], stepp: 2}\n"
    )
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert [problem.place for problem in refused.value.problems] == [f"{path}:6:33"]
    path.write_text(path.read_text().replace(", stepp: 2", ""))
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert [problem.place for problem in refused.value.problems] == [f"{path}:5:27"]


def test_a_grid_leaves_out_what_a_combination_does_not_vary() -> None:
    """A key with a condition is a dimension only where it holds."""
    from finetune.recipe.schema.sweep import SweepSection

    space = {
        "adapter.alpha": {"choice": [8, 16], "when": {"adapter.method": "lora"}},
        "adapter.method": {"choice": ["lora", "full"]},
    }
    assert list(SweepSection.model_validate({"space": space, "sampler": "grid"}).grid()) == [
        {"adapter.method": "lora", "adapter.alpha": 8},
        {"adapter.method": "lora", "adapter.alpha": 16},
        {"adapter.method": "full"},
    ]
