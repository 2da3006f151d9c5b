"""What the processes of a run agree on: two of them, over gloo."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import os, sys, time
import torch
from torch import distributed
from finetune.engines.group import Group

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
group = Group(rank, 2, rank)
way = group.beside()
print(group.say_the_same(way, "1 a", 30), group.say_the_same(way, "2 " + "ab"[rank], 30))
mean, mixed = group.average([torch.tensor([1.0, rank]), torch.full((2, 1), rank, dtype=torch.bfloat16)])
print(mean.tolist(), mixed.tolist(), mixed.dtype)
if rank == 0:
    print(group.say_the_same(way, "3 a", 0.5))
else:
    time.sleep(1.5)
"""


def test_two_processes(tmp_path: Path) -> None:
    """They say the same or not, or one doesn't come; means keep shape and type."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [lines[0] for lines in said] == ["True False"] * 2
    assert [lines[1] for lines in said] == ["[1.0, 0.5] [[0.5], [0.5]] torch.bfloat16"] * 2
    assert said[0][2:] == ["False"]


def test_one_process_agrees_with_itself() -> None:
    """And waits for nobody."""
    from finetune.engines.group import ALONE

    assert ALONE.say_the_same(ALONE.beside(), "anything", 0.0)
