"""Answers to a recipe's prompts, scored, and kept by rule."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import finetune
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.data import prepare_data
from finetune.errors import CheckpointError, FinetuneError
from finetune.evaluation.sampled import PROMPTS_AT_A_TIME
from finetune.evaluation.scored_answers import PARTIAL
from finetune.recipe.load import LoadedRecipe, load_recipe
from tests.support.models import save_tiny_llama

DIGITS = {"digits": {"kind": "regex", "pattern": "[0-9]", "weight": 2}}
SHORT = {"short": {"kind": "length", "most_tokens": 4, "margin_tokens": 8}}

Asking = Callable[..., LoadedRecipe]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base whose answers differ from one another, and mostly end within a few tokens."""
    folder = tmp_path_factory.mktemp("sampled") / "base"
    save_tiny_llama(folder, initializer_range=0.15)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        states = model.model(torch.arange(200)[None]).last_hidden_state.mean(dim=(0, 1))
        model.lm_head.weight[model.config.eos_token_id] = 3 * states / (states @ states)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def asking(base: Path, tmp_path: Path) -> Asking:
    """asking(rows) -> a recipe of so many prompts, whose answers are worth their digits, and to be short."""

    def make(rows: int = 6, **sections: Any) -> LoadedRecipe:
        lines = [
            {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}"}]}
            for n in range(rows)
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tree = {
            "model": {"base": str(base)},
            "objective": {"kind": "grpo", "rewards": DIGITS | SHORT},
            "data": {
                "train": [{"path": str(tmp_path / "rows.jsonl"), "format": "messages"}],
                "max_length_tokens": 64,
            },
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(tree | sections))
        return load_recipe(str(tmp_path / "recipe.yaml"), [])

    return make


def sampled(recipe: LoadedRecipe, output: Path, **options: Any) -> list[dict[str, Any]]:
    finetune.sample(recipe, output, **{"count": 6, "max_new_tokens": 12} | options)
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_the_best_answer_is_kept_with_where_it_comes_from(asking: Asking, tmp_path: Path) -> None:
    """Of each prompt the first with the highest weighted sum, among those that came to their end."""
    recipe = asking()
    every = sampled(recipe, tmp_path / "all.jsonl", keep="all")
    best = sampled(recipe, tmp_path / "best.jsonl")
    assert len(every) > len(best) == 6
    for row in best:
        facts = row["sampled"]
        same = [other["sampled"] for other in every if other["sampled"]["row"] == facts["row"]]
        assert facts == max(same, key=lambda one: one["score"])
        assert facts["score"] == 2 * facts["scores"]["digits"] + facts["scores"]["short"]
        assert facts["seed"] == 0
        assert str(recipe.recipe.model.base) in facts["model"]
    assert len({row["sampled"]["answer"] for row in best}) > 1
    assert {row["messages"][0]["content"] for row in best} == {f"{n}?" for n in range(6)}


def test_pairs_are_the_best_and_the_worst_where_they_differ(asking: Asking, tmp_path: Path) -> None:
    """As rows that a preference objective trains on."""
    recipe = asking()
    every = sampled(recipe, tmp_path / "all.jsonl", keep="all")
    pairs = sampled(recipe, tmp_path / "pairs.jsonl", keep="pairs")
    scores = [
        [one["sampled"]["score"] for one in every if one["sampled"]["row"] == f"rows.jsonl:{line}"]
        for line in range(1, 7)
    ]
    assert len(pairs) == sum(len(set(own)) > 1 for own in scores) > 0
    for pair in pairs:
        assert pair["sampled"]["score"] > pair["sampled"]["rejected"]["score"]
    source = {"path": str(tmp_path / "pairs.jsonl"), "format": "preference"}
    trained = asking(objective={"kind": "dpo"}, data={"train": [source], "max_length_tokens": 64}).recipe
    assert len(prepare_data(trained, load_tokenizer(Path(str(trained.model.base)))).train) == 2 * len(pairs)


def test_answers_below_a_score_are_left_out(asking: Asking, tmp_path: Path) -> None:
    """Of all answers, those that reach it."""
    recipe = asking()
    every = sampled(recipe, tmp_path / "all.jsonl", keep="all")
    least = sorted(row["sampled"]["score"] for row in every)[len(every) // 2]
    some = sampled(recipe, tmp_path / "some.jsonl", keep="all", at_least=least)
    assert some == [row for row in every if row["sampled"]["score"] >= least] != every


def test_an_interrupted_command_goes_on(asking: Asking, tmp_path: Path) -> None:
    """With the same bytes in the end, and what was drawn before isn't drawn again."""
    recipe, told = asking(PROMPTS_AT_A_TIME + 8), list[int]()
    whole = sampled(recipe, tmp_path / "whole.jsonl", count=2)

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "half.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sampled(recipe, output, count=2, progress=interrupt)
    assert not output.exists()
    partial = output.with_name(output.name + PARTIAL)
    partial.write_text(partial.read_text() + '[{"number": 1, "te')  # as kill -9 in a write leaves it
    half = sampled(recipe, output, count=2, progress=lambda done, of: told.append(done))
    assert half == whole
    assert told == [PROMPTS_AT_A_TIME + 8]
    assert not partial.exists()


def test_what_is_beside_the_output_must_be_of_the_same_command(asking: Asking, tmp_path: Path) -> None:
    """Another seed, or other prompts, draw other answers."""

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "rows_out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sampled(asking(), output, progress=interrupt)
    with pytest.raises(CheckpointError, match="holds answers of another model, other prompts"):
        sampled(asking(), output, seed=1)
    with pytest.raises(CheckpointError, match="holds answers of another model, other prompts"):
        sampled(asking(5), output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "worst"}, "--keep is 'worst'; expected best, all, pairs"),
        ({"keep": "pairs", "count": 1}, "set --n to at least 2"),
        ({"temperature": 0.0}, "expected more than 0"),
        ({"temperature": float("inf")}, "--temperature is inf; expected a finite number"),
        ({"at_least": float("nan")}, "--at-least is nan; expected a finite number"),
        ({"top_p": 0.0}, "--top-p is 0: nothing could be drawn"),
        ({"scores": ["chrf", "chrf"]}, "--score chrf is given twice"),
        ({"scores": ["exact"]}, "--score exact: expected one of exact_match"),
        ({"scores": ["regex"]}, "needs keys of its own"),
        ({"scores": ["number"]}, r"--score number: .*rows.jsonl:1 has no number in its answer"),
    ],
)
def test_what_cannot_be_is_refused(
    asking: Asking, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """With one message, and nothing written."""
    recipe = asking()
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(FinetuneError, match=message):
        sampled(recipe, tmp_path / "out.jsonl", **options)
    assert not list(tmp_path.glob("out.jsonl*"))


def test_it_is_said_what_answers_are_worth(asking: Asking, tmp_path: Path) -> None:
    """A recipe without rewards needs --score; an output that exists stays."""
    plain = asking(objective={"kind": "supervised"})
    with pytest.raises(FinetuneError, match="it is not said what an answer is worth"):
        sampled(plain, tmp_path / "out.jsonl")
    assert sampled(plain, tmp_path / "out.jsonl", scores=["chrf"])
    with pytest.raises(FinetuneError, match="exists; name another file"):
        sampled(plain, tmp_path / "out.jsonl", scores=["chrf"])


def test_nothing_that_is_kept_is_said(asking: Asking, tmp_path: Path) -> None:
    """With why; other rules need no new answers."""
    recipe, output = asking(), tmp_path / "out.jsonl"
    with pytest.raises(
        FinetuneError, match=r"nothing is kept of 36 answers: \d+ were cut .* the best .* scores"
    ):
        sampled(recipe, output, at_least=3)
    assert not output.exists()
    told = list[int]()
    assert sampled(recipe, output, progress=lambda done, of: told.append(done))
    assert told == []


def test_answers_that_are_all_cut_need_others(asking: Asking, tmp_path: Path) -> None:
    """No rule keeps any of them, which is said with what does."""
    with pytest.raises(
        FinetuneError, match=r"no other is left. Give more --max-new-tokens.* remove .*partial"
    ):
        sampled(asking(1), tmp_path / "out.jsonl", max_new_tokens=1)


def test_scores_of_another_file_are_not_gone_on_from(asking: Asking, tmp_path: Path) -> None:
    """A reward's file that changed in between scores otherwise."""
    code, output = tmp_path / "own.py", tmp_path / "out.jsonl"
    objective = {"kind": "grpo", "rewards": {"own": {"kind": "python", "code": str(code)}}}
    allowed = list[str]()

    def scored(sign: str, **options: Any) -> None:
        code.write_text(f"def reward(prompt, answer, references):\n    return {sign}len(answer)\n")
        allowed.append(hashlib.sha256(code.read_bytes()).hexdigest())
        sampled(asking(objective=objective), output, allow_code=allowed, **options)

    with pytest.raises(FinetuneError, match="nothing is kept"):
        scored("-", at_least=1)
    with pytest.raises(CheckpointError, match="holds answers of another model, other prompts, scores"):
        scored("+")


def _interrupt(done: int, of: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ['[{"number": 1}]', "5", "[]", "more"])
def test_a_damaged_partial_output_is_refused(asking: Asking, tmp_path: Path, damage: str) -> None:
    """With one message, whatever it holds, also answers to more prompts than there are."""
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sampled(asking(2), output, progress=_interrupt)
    partial = output.with_name(output.name + PARTIAL)
    last = partial.read_text().splitlines()[-1]
    with partial.open("a") as file:
        file.write(f"{last if damage == 'more' else damage}\n")
    with pytest.raises(CheckpointError, match=r"out.jsonl.partial is damaged: .* Remove it"):
        sampled(asking(2), output)


def test_one_process_at_a_time_writes_an_output(asking: Asking, tmp_path: Path) -> None:
    """Two would mix their answers."""
    recipe, output = asking(PROMPTS_AT_A_TIME + 1), tmp_path / "out.jsonl"

    def second(done: int, of: int) -> None:
        if done < of:
            with pytest.raises(CheckpointError, match="another process is writing"):
                sampled(recipe, output, count=2)

    assert sampled(recipe, output, count=2, progress=second)


def test_an_output_without_a_folder_is_refused(asking: Asking, tmp_path: Path) -> None:
    """Before anything is loaded or drawn, by its own name."""
    with pytest.raises(
        FinetuneError, match=r"--output .*nowhere/out.jsonl can't be written: there is no folder"
    ):
        sampled(asking(), tmp_path / "nowhere" / "out.jsonl")
