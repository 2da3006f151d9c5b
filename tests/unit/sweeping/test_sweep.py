"""A sweep in one process: what it tries, what it stops, what it goes on with, what it leaves."""

import re
from pathlib import Path
from typing import Any

import pytest

import finetune
from data_prep.errors import DataError
from finetune.errors import RecipeError, SweepError
from finetune.runs.folder import open_run
from finetune.sweeping.results import Sweep
from tests.support.messages import hearing
from tests.unit.sweeping.sweeps import JUDGES, write_recipe

HALVING = {"pruner": {"reduction_factor": 2}, "trials": 6}


@pytest.fixture(scope="module")
def halved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Six trials by halving."""
    return finetune.sweep(write_recipe(tmp_path_factory.mktemp("halved"), tiny_base, HALVING))


def seen(found: Sweep) -> list[Any]:
    """What can differ between two sweeps."""
    return [(row.values, row.status, row.result, row.evaluations, row.tokens) for row in found.trials]


def test_halving_drops_trials_and_saves_tokens(halved: Sweep) -> None:
    """Those that fall behind took fewer tokens than those that came to their end, and the best is among
    those."""
    dropped = [row for row in halved.trials if row.status == "pruned"]
    finished = [row for row in halved.trials if row.status == "finished"]
    assert dropped
    assert max(row.tokens for row in dropped) < min(row.tokens for row in finished)
    assert halved.best[0].result == min(row.result for row in finished if row.result)


def test_a_dropped_trial_is_a_stopped_run_that_says_why(halved: Sweep) -> None:
    """Its checkpoint is there, so that it can be resumed by hand."""
    row = next(row for row in halved.trials if row.status == "pruned")
    run = open_run(halved.run_of(row))
    summary = run.read_summary()
    assert (summary["status"], summary["stopped_because"]) == ("stopped", row.note)
    assert "pruned by halving at evaluation" in run.log_path.read_text()
    assert list(run.checkpoints.iterdir())


def test_one_worker_finds_the_same_trials_again(halved: Sweep, tiny_base: Path, tmp_path: Path) -> None:
    """Also where it was begun for three trials, and went on to six in another call."""
    path = write_recipe(tmp_path, tiny_base, HALVING)
    finetune.sweep(path, ["sweep.trials=3"])
    assert seen(finetune.sweep(path)) == seen(halved)


def test_a_sweep_that_is_done_trains_nothing_more(halved: Sweep) -> None:
    """The same call again says what was found."""
    before = [path.stat().st_mtime_ns for path in halved.folder.glob("trial-*/summary.json")]
    again = finetune.sweep(halved.folder.parents[1] / "sweep.yaml")
    assert seen(again) == seen(halved)
    assert before == [path.stat().st_mtime_ns for path in halved.folder.glob("trial-*/summary.json")]


def test_best_yaml_is_the_recipe_of_the_best_trial(halved: Sweep) -> None:
    """But for where runs go, and it says where each value comes from."""
    best = finetune.load_recipe(halved.recipe)
    trained = finetune.Run(halved.run_of(halved.best[0])).recipe
    unlike = [name for name, value in best.recipe if value != getattr(trained, name)]
    assert unlike == ["output"]
    assert best.origins["train.learning_rate"].startswith("best.yaml:")
    assert best.origins["train.max_steps"].startswith("../../sweep.yaml:")


def test_best_yaml_trains_to_the_same_loss(halved: Sweep) -> None:
    """Bit for bit."""
    run = finetune.train(halved.recipe)
    assert (run.metrics["evaluation_loss"],) == halved.best[0].result


def test_a_sweep_of_another_space_is_refused(halved: Sweep) -> None:
    """It names what differs; nothing of the first is touched."""
    with pytest.raises(
        SweepError, match=r"there is a sweep 'sweep' already, .*train\.max_steps is 4 there and 5"
    ):
        finetune.sweep(halved.folder.parents[1] / "sweep.yaml", {"train.max_steps": 5})


def test_another_storage_is_refused(halved: Sweep, tmp_path: Path) -> None:
    """The folder's trials are not in it."""
    with pytest.raises(SweepError, match="has the trials of a study that is not in this storage"):
        finetune.sweep(halved.folder.parents[1] / "sweep.yaml", storage=str(tmp_path / "s.journal"))


def test_a_grid_tries_each_combination_once(tiny_base: Path, tmp_path: Path) -> None:
    """In order, each key only where its condition holds; on the command line's recipe."""
    space = {
        "train.schedule": {"choice": ["constant", "cosine"]},
        "train.warmup_ratio": {"uniform": [0.0, 0.5], "points": 2, "when": {"train.schedule": "cosine"}},
        "adapter.target_modules": {"choice": ["all-linear", ["q_proj"]], "when": {"train.warmup_ratio": 0.0}},
    }
    path = write_recipe(tmp_path, tiny_base, {"space": space, "sampler": "grid"})
    found = finetune.sweep(path, ["train.max_steps=1", "data.train.0.sample_rows=8"])
    assert [row.values for row in found.trials] == [
        {"train.schedule": "constant"},
        {"train.schedule": "cosine", "train.warmup_ratio": 0.0, "adapter.target_modules": "all-linear"},
        {"train.schedule": "cosine", "train.warmup_ratio": 0.0, "adapter.target_modules": ["q_proj"]},
        {"train.schedule": "cosine", "train.warmup_ratio": 0.5},
    ]
    assert finetune.load_recipe(found.recipe).recipe.data.train[0].sample_rows == 8


def test_of_two_objectives_the_front_is_kept(tiny_base: Path, tmp_path: Path) -> None:
    """A trial is on it that no other one betters in both."""
    sweep = {"objectives": ["loss", "chrf"], "trials": 3, "sampler": "random"}
    measured = {"metrics": ["chrf"], "max_new_tokens": 4}
    found = finetune.sweep(write_recipe(tmp_path, tiny_base, sweep, evaluate=measured))
    results = [row.result for row in found.trials if row.result]
    front = [
        (loss, chrf)
        for loss, chrf in results
        if not any(a <= loss and b >= chrf and (a, b) != (loss, chrf) for a, b in results)
    ]
    assert [row.result for row in found.best] == sorted(front)


def test_the_best_are_repeated_on_rows_that_chose_nothing(tiny_base: Path, tmp_path: Path) -> None:
    """With other seeds, and intervals; a second call scores nothing again."""
    repeats = {"best": 2, "seeds": 2, "sources": JUDGES}
    path = write_recipe(tmp_path, tiny_base, {"trials": 2, "repeats": repeats})
    found = finetune.sweep(path)
    runs = sorted(path.parent.name for path in found.folder.glob("trial-*-seed-*/summary.json"))
    assert runs == [f"trial-00{trial}-seed-{seed}" for trial in (1, 2) for seed in (1, 2)]
    assert finetune.Run(found.folder / "trial-001-seed-2").recipe.train.seed == 2
    first, second = found.repeats
    assert first.interval.low <= first.interval.value <= first.interval.high
    assert (first.ahead is not None and first.ahead.value >= 0, second.ahead) == (True, None)
    assert finetune.sweep(path).repeats == found.repeats


def test_rows_that_choose_do_not_judge(tiny_base: Path, tmp_path: Path) -> None:
    """Another file with the same rows is refused before anything is trained."""
    path = write_recipe(
        tmp_path, tiny_base, {"repeats": {"sources": [{"path": "again.json", "format": "alpaca"}]}}
    )
    (tmp_path / "again.json").write_bytes((tmp_path / "chosen_by.json").read_bytes())
    with pytest.raises(
        SweepError, match=r"4 of the 4 rows of sweep\.repeats\.sources are rows of data\.evaluation"
    ):
        finetune.sweep(path)
    assert not list((tmp_path / "runs").glob("*/trial-*"))


def test_a_trial_that_diverges_is_the_worst_and_no_error(tiny_base: Path, tmp_path: Path) -> None:
    """The others go on."""
    sweep = {"space": {"adapter.alpha": {"choice": [1e38, 8.0]}}, "sampler": "grid"}
    found = finetune.sweep(write_recipe(tmp_path, tiny_base, sweep))
    assert [row.status for row in found.trials] == ["diverged", "finished"]
    assert re.search(r"the (loss|gradient norm) is (nan|inf)", found.trials[0].note)


def test_values_that_do_not_go_together_are_named(tiny_base: Path, tmp_path: Path) -> None:
    """Each may be had beside the recipe, and the two not beside one another."""
    space = {"train.global_batch_size": {"choice": [8, 4]}, "train.micro_batch_size": {"choice": [8, 4]}}
    path = write_recipe(
        tmp_path, tiny_base, {"space": space, "sampler": "grid"}, train={"micro_batch_size": 4}
    )
    with pytest.raises(RecipeError, match=r"trial 3 \(train.global_batch_size 4, train.micro_batch_size 8\)"):
        finetune.sweep(path, ["train.max_steps=1"])


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("postgresql+psycopg://me:secret@127.0.0.1:1/none", r"can't be reached: .*refused"),
        ("postgres://127.0.0.1/none", "needs a driver|can't be reached"),
        ("postgresql+psycopg://me:secret@127.0.0.1:none/none", "the storage is no database's URL; expected"),
        ("somewhere", r"expected a URL .*or a file FILE\.journal"),
    ],
)
def test_a_storage_that_can_not_be_had_is_one_message(
    storage: str, said: str, tiny_base: Path, tmp_path: Path
) -> None:
    """Without its password; no trial was begun."""
    with pytest.raises(SweepError, match=said) as refused:
        finetune.sweep(write_recipe(tmp_path, tiny_base, {}), storage=storage)
    assert "secret" not in str(refused.value)
    assert not list((tmp_path / "runs").glob("*/trial-*"))


def test_paths_that_are_varied_start_at_the_recipe(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all paths of its file, wherever the sweep is started; one that isn't there is found before."""
    choices = [[{"path": name, "format": "alpaca"}] for name in ("train.json", "judged_by.json")]
    space = {"data.train": {"choice": choices}}
    path = write_recipe(tmp_path, tiny_base, {"space": space, "sampler": "grid", "trials": None})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(finetune.sweep(path, ["train.max_steps=1"]).best) == 2
    path.write_text(path.read_text().replace("judged_by.json", "absent.json"))
    with pytest.raises(RecipeError, match=r"sweep.yaml:1:\d+  data.train.0.path  no such file: looked at"):
        finetune.sweep(path)


def test_train_says_that_it_searches_nothing(tiny_base: Path, tmp_path: Path) -> None:
    """A section sweep is no part of a run: finetune train doesn't pass over it in silence."""
    said: list[str] = []
    with hearing(said.append):
        finetune.train(write_recipe(tmp_path, tiny_base, {}), ["train.max_steps=1"])
    assert "the recipe's section sweep is for finetune sweep: this trains the recipe as it is" in said


def test_a_folder_that_is_no_sweep_is_left_alone(tiny_base: Path, tmp_path: Path) -> None:
    """A sweep writes into nobody's folder."""
    path = write_recipe(tmp_path, tiny_base, {})
    (tmp_path / "runs" / "sweep").mkdir(parents=True)
    (tmp_path / "runs" / "sweep" / "thesis.tex").write_text("")
    with pytest.raises(SweepError, match=r"holds thesis\.tex and is no sweep"):
        finetune.sweep(path)


def test_a_recipe_without_a_space_is_refused() -> None:
    """It says what to write."""
    with pytest.raises(SweepError, match="has no section sweep"):
        finetune.sweep("quickstart")


def test_no_trial_begins_after_the_hours(tiny_base: Path, tmp_path: Path) -> None:
    """The first one is trained to its end; those of an earlier call count."""
    sweep = {"trials": None, "hours": 1e-9}
    path = write_recipe(tmp_path, tiny_base, sweep, train={"max_steps": 1})
    assert [row.status for row in finetune.sweep(path).trials] == ["finished"]
    assert len(finetune.sweep(path).trials) == 1


def test_the_trials_are_one_group_of_the_tracker(tiny_base: Path, tmp_path: Path) -> None:
    """By the sweep's name, where the recipe names no group."""
    path = write_recipe(
        tmp_path, tiny_base, {"trials": 1}, train={"max_steps": 1}, tracking={"tracker": "trackio"}
    )
    found = finetune.sweep(path)
    assert finetune.Run(found.run_of(found.trials[0])).recipe.tracking.group == "sweep"


def test_trials_of_one_base_train_at_once(halved: Sweep, tiny_base: Path, tmp_path: Path) -> None:
    """Each is what it is alone; one that is dropped leaves its place to the next."""
    path = write_recipe(tmp_path, tiny_base, HALVING)
    said: list[str] = []
    with hearing(said.append):
        found = finetune.sweep(path, max_adapters=3)
    alone = {row.number: row for row in halved.trials}
    assert [row.values for row in found.trials] == [row.values for row in halved.trials]
    for row in found.trials:
        if row.status == alone[row.number].status == "finished":
            assert row.result == pytest.approx(alone[row.number].result, rel=1e-3)
    assert {row.status for row in found.trials} == {"finished", "pruned"}
    begun = [index for index, line in enumerate(said) if line.startswith("train.learning_rate ")]
    ended = [index for index, line in enumerate(said) if "stopped after step" in line]
    assert len(begun) == 6
    assert begun[2] < ended[0] < begun[3]  # three together, and the fourth in a place that was left
    assert seen(finetune.sweep(path)) == seen(found)  # nothing is left to do, one at a time neither


def test_what_can_not_share_a_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """Before a trial, or in the one that it is drawn for; the others come to their end."""
    with pytest.raises(SweepError, match=r"adapter\.use_dora.*Leave out --max-adapters"):
        finetune.sweep(write_recipe(tmp_path, tiny_base, {}, adapter={"use_dora": True}), max_adapters=2)
    drawn = {"space": {"adapter.use_dora": {"choice": [False, True]}}, "sampler": "grid", "trials": None}
    path = write_recipe(tmp_path, tiny_base, drawn, output={"folder": str(tmp_path / "others")})
    with pytest.raises(SweepError, match=r"sweep\.space\.adapter\.use_dora: .*computed for several"):
        finetune.sweep(path, max_adapters=2)
    assert not list((tmp_path / "others" / "sweep").glob("trial-*"))
    for key, values, what in (
        ("train.precision", ["fp32", "bf16"], "train.precision"),
        ("adapter.method", ["lora", "qlora"], "the base's quantisation"),
    ):
        drawn["space"] = {key: {"choice": values}}
        path = write_recipe(tmp_path, tiny_base, drawn, output={"folder": str(tmp_path / key)})
        with pytest.raises(SweepError, match=rf"sweep\.space\.{key}: it changes {what}, which trials"):
            finetune.sweep(path, max_adapters=2)


def test_a_trial_that_fails_lets_the_others_end(tiny_base: Path, tmp_path: Path) -> None:
    """Its error ends the sweep then; once that is mended, the same call goes on."""
    rows = tmp_path / "other.json"
    drawn = {"space": {"data.train.0.path": {"choice": ["train.json", str(rows)]}}, "sampler": "grid"}
    rows.write_text("[]")
    path = write_recipe(tmp_path, tiny_base, drawn | {"trials": None})
    with pytest.raises(DataError):
        finetune.sweep(path, max_adapters=2)
    first = open_run(tmp_path / "runs" / "sweep" / "trial-001")
    assert first.read_summary()["status"] == "finished"
    rows.write_text((tmp_path / "train.json").read_text())
    assert len(finetune.sweep(path, max_adapters=2).best) == 2


def test_repeats_train_at_once(tiny_base: Path, tmp_path: Path) -> None:
    """As many as are asked for, scored as they are alone."""
    repeats = {"trials": 2, "repeats": {"best": 2, "seeds": 2, "sources": JUDGES}}
    repeats |= {"space": {"train.learning_rate": {"log_uniform": [1e-4, 1e-3]}}}
    together = finetune.sweep(write_recipe(tmp_path, tiny_base, repeats), max_adapters=4)
    assert {len(repeat.by_seed) for repeat in together.repeats} == {2}
    alone = finetune.sweep(
        write_recipe(tmp_path, tiny_base, repeats, output={"folder": str(tmp_path / "alone")})
    )
    for one, other in zip(together.repeats, alone.repeats, strict=True):
        assert one.number == other.number
        assert one.by_seed == pytest.approx(other.by_seed, rel=1e-3)
