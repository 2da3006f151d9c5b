"""The command line on a tiny model: every verb, and what bad input becomes."""

import json
from pathlib import Path

import pytest

from tests.support.cli import Finetune
from tests.support.models import save_tiny_llama

RECIPE = """\
model: {{base: {base}}}
adapter: {{rank: 4}}
data:
  train: [{{path: {rows}, format: alpaca}}]
  evaluation: {{fraction: 0.1}}
  max_length_tokens: 128
train: {{learning_rate: 1e-2, micro_batch_size: 8, precision: fp32}}
output: {{name: tiny}}
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path, alpaca_file: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(base=tiny_base, rows=alpaca_file))
    return path


def test_a_run_goes_through_every_verb(
    finetune: Finetune, finetune_here: Finetune, recipe: Path, tmp_path: Path
) -> None:
    """check, train, merge, generate, chat, evaluate, inspect and runs work one after the other on one run."""
    assert "recipe.yaml:" in finetune("check", "recipe.yaml").stdout
    assert "parameters" in finetune_here("check", "recipe.yaml", "--deep").stdout
    trained = finetune("train", "recipe.yaml", "train.max_steps=6").stdout
    assert "evaluation loss" in trained
    assert "finetune merge" in trained
    run = str(tmp_path / "runs" / "tiny-001")
    assert "verification  holds" in finetune_here("merge", run, "--output", "merged").stdout
    for target in (run, "merged", f"{run}/adapter"):
        answers = json.loads(
            finetune_here(
                "generate", target, "--prompt", "Say blue.", "--max-new-tokens", "5", "--json"
            ).stdout
        )
        assert [answer["prompt"] for answer in answers] == ["Say blue."]
    finetune("chat", "merged", input="Say blue.\n/exit\n", timeout=120)
    scores = json.loads(finetune_here("evaluate", run, "recipe.yaml", "--json").stdout)
    assert scores["metrics"]["loss"]["value"] == pytest.approx(
        json.loads((Path(run) / "summary.json").read_text())["evaluation_loss"], rel=1e-4
    )
    assert json.loads(finetune_here("inspect", "recipe.yaml", "--json").stdout)
    assert "tiny-001" in finetune_here("runs", "list").stdout
    assert json.loads(finetune_here("runs", "show", run, "--json").stdout)["summary"]["status"] == "finished"


def test_the_quickstart_walks_with_any_base(finetune_here: Finetune, tmp_path: Path) -> None:
    """On a tiny random base the quickstart goes its whole way and prints its table; what it can't merge is
    refused first."""
    base = tmp_path / "base"
    base.mkdir()
    save_tiny_llama(base, max_position_embeddings=1024)
    small = [
        f"model.base={base}", "data.max_length_tokens=1024", "data.train.0.rows=16",
        "data.evaluation.sources.0.rows=4", "train.max_steps=2", "train.epochs=null", "train.precision=fp32",
        "evaluate.max_new_tokens=8", "tracking.tracker=none",
    ]  # fmt: skip
    printed = finetune_here("quickstart", *small).stdout
    for part in (
        "exact match",
        "loss",
        "tokens/s",
        "peak memory",
        "minutes of training",
        "holds on",
        "sample 3",
        "merged",
    ):
        assert part in printed
    assert "merges an adapter" in finetune_here("quickstart", *small, "data.evaluation=null", code=2).stderr


def test_a_bad_recipe_is_one_clear_message(finetune: Finetune, recipe: Path) -> None:
    """Every problem at once, each with its place; exit 2."""
    text = (
        recipe.read_text()
        .replace("learning_rate", "learning_rte")
        .replace("rank: 4", "rank: 0")
        .replace("alpaca", "alpacca")
    )
    recipe.write_text(text)
    errors = finetune("train", "recipe.yaml", code=2).stderr
    for part in ("recipe.yaml:7:", "did you mean learning_rate?", "recipe.yaml:2:", "adapter.rank", "alpaca"):
        assert part in errors


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.target_modules=[q_proj,wq]", "matches no module"),
        ("data.max_length_tokens=9", "no row"),
        ("data.evaluation.fraction=0.001", "no row"),
        ("train.optimizer=adamwx", "adamwx"),
        ("tracking.tracker=wandb", "WANDB_API_KEY"),
    ],
)
def test_what_only_training_can_know_is_refused_too(
    finetune_here: Finetune, recipe: Path, override: str, message: str
) -> None:
    """Targets, row counts, optimizers and trackers that can't be honoured end in one message, and leave no
    run."""
    extra = ["tracking.wandb_mode=online"] if "wandb" in override else []
    errors = finetune_here("train", "recipe.yaml", override, *extra, code=2).stderr
    assert message in errors
    assert not list((recipe.parent / "runs").glob("*"))


def test_a_model_without_an_adapter_is_not_merged(
    finetune_here: Finetune, tmp_path: Path, tiny_base: Path
) -> None:
    """There is nothing to merge, and nothing is written."""
    assert "has no adapter" in finetune_here("merge", str(tiny_base), "--output", "merged", code=2).stderr
    assert not (tmp_path / "merged").exists()


def test_train_needs_a_recipe_or_a_run(finetune_here: Finetune) -> None:
    """Without either, the message says how to call it."""
    assert "finetune train RECIPE" in finetune_here("train", code=2).stderr
