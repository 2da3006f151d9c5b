"""A student of a teacher over two processes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launches import Train, accelerate_launch, difference
from tests.support.models import save_tiny_llama


def sections(folder: Path, **objective: Any) -> dict[str, Any]:
    """A recipe's sections; rows don't come out even over two processes."""
    save_tiny_llama(folder / "base", initializer_range=0.15)
    save_tiny_llama(folder / "teacher", hidden_size=96, intermediate_size=64, initializer_range=0.1)
    rows = [{"prompt": f"number {index}?", "completion": f"it is {index}"} for index in range(13)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"base": str(folder / "base")},
        "data": {
            "train": [{"path": "rows.jsonl", "format": "prompt_completion"}],
            "evaluation": {"rows": 3},
            "pack_length_tokens": None,
        },
        "objective": {"kind": "distill", "teacher": str(folder / "teacher")} | objective,
        "train": {"optimizer": "sgd", "learning_rate": 0.05, "max_steps": 4, "evaluate_every": 4},
    }


SCRIPT = """
import os

os.environ["FINETUNE_CACHE"] += os.environ["RANK"]

from finetune.cli.app import run
from finetune.training import teacher_store

teacher_store.SHARD_TOKENS, write = 16, teacher_store.TeacherStore._said


def said(self, teacher, shard):
    print("process", os.environ["RANK"], "asks about", shard, flush=True)
    return write(self, teacher, shard)


teacher_store.TeacherStore._said = said
raise SystemExit(run())
"""
"""Two processes without a common cache."""


@pytest.mark.long
def test_each_asks_its_share_before_step_1(
    train: Train, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes compute every other part, give it to one another, and train as one does."""
    own = sections(tmp_path, top_k=16)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "one"))
    alone = train(**own)
    environment["FINETUNE_CACHE"] = str(tmp_path / "two")
    (tmp_path / "script.py").write_text(SCRIPT)
    both = train(command=[*accelerate_launch("ddp"), str(tmp_path / "script.py")], **own)
    asked = [
        [line for line in both.stdout.splitlines() if line.startswith(f"process {rank} asks")]
        for rank in (0, 1)
    ]
    assert all(len(lines) >= 2 for lines in asked), both.stdout
    caches = [
        {path.relative_to(cache): path.read_bytes() for path in (cache / "teachers").glob("*/*.npy")}
        for cache in (tmp_path / "two0", tmp_path / "two1")
    ]
    assert caches[0] == caches[1]
    assert len(caches[0]) == sum(map(len, asked))
    for name in ("train/loss", "eval/loss", "eval/teacher/mass"):
        assert both.losses(name) == pytest.approx(alone.losses(name), rel=2e-5), name
    assert difference(both.weights(), alone.weights()) < 1e-3


@pytest.mark.long
def test_each_draws_its_own_answers(train: Train, tmp_path: Path) -> None:
    """The rows that are asked, their answers, losses and weights are one process's."""
    own = sections(tmp_path, on_policy={"fraction": 0.5, "max_new_tokens": 8}, divergence="jsd")
    alone = train(**own)
    both = train("--launch", "ddp", "--processes", "2", **own)
    for name in ("train/on_policy/share", "train/on_policy/answer_tokens", "train/loss", "eval/loss"):
        assert both.losses(name) == pytest.approx(alone.losses(name), rel=1e-4, abs=2e-5), name
    assert difference(both.weights(), alone.weights()) < 1e-3


@pytest.mark.long
@pytest.mark.parametrize(
    ("teacher", "objective"),
    [
        ("base", {}),
        ("another", {}),
        ("another", {"top_k": 16}),
        ("another", {"on_policy": {"fraction": 0.5, "max_new_tokens": 8}}),
    ],
    ids=["base", "another", "offline", "on-policy"],
)
def test_a_student_that_is_cut_up(
    train: Train, tmp_path: Path, teacher: str, objective: dict[str, Any]
) -> None:
    """Two processes of fsdp2 learn from a teacher that each has whole, or from the student without its
    adapter, what one process does; the base has something to say beside the rows' own tokens."""
    own = sections(tmp_path, divergence="forward_kl" if "top_k" in objective else "jsd", **objective)
    if teacher == "base":
        own["objective"] |= {"teacher": "base", "supervised_weight": 0.5}
    alone = train(**own)
    both = train("--launch", "fsdp2", "--processes", "2", **own)
    for name in ("train/loss", "train/losses/divergence", "train/teacher/loss", "eval/loss"):
        assert both.losses(name) == pytest.approx(alone.losses(name), rel=1e-4, abs=2e-5), name
    assert difference(both.weights(), alone.weights()) < 1e-3


def test_engines_that_step_backwards_draw_nothing(train: Train, tmp_path: Path) -> None:
    """With one message, before a process is started."""
    own = sections(tmp_path, on_policy={"fraction": 0.5})
    ended = train("--launch", "zero2", "--processes", "2", code=2, **own)
    assert "it was never shown to draw answers. Take ddp." in ended.stdout + ended.stderr
