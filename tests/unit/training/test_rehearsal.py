"""The rehearsal leaves no trace, takes what is heaviest, and says what to change where memory isn't
enough."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.models.device import generators_kept
from finetune.training import build
from finetune.training.callbacks.memory_check import largest_micro_batch
from finetune.training.inputs import build_inputs
from tests.support.processes import adapter_of, assert_equal, start
from tests.support.recipes import MakeRecipe

CROWDED_SCRIPT = """
import resource, sys
from finetune.cli.quiet import quiet_libraries
quiet_libraries()
from finetune.recipe.schema import Recipe
from finetune.training import run
from tests.support.messages import hearing

def say(line):
    if line.startswith("run folder"):
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(line, flush=True)

with hearing(say):
    run.start(Recipe.model_validate_json(sys.argv[1]), name="crowded", command="test")
"""


@pytest.mark.parametrize(
    ("data", "train"),
    [
        ({}, {"micro_batch_size": 2, "neftune_alpha": 5.0}),
        ({"pack_length_tokens": 256}, {"micro_batch_size": 1, "global_batch_size": 2}),
        pytest.param({}, {"optimizer": "adamw_8bit"}, marks=pytest.mark.long),
    ],
)
def test_a_rehearsed_run_is_bit_for_bit_the_same(
    make_recipe: MakeRecipe, data: dict[str, Any], train: dict[str, Any]
) -> None:
    """With dropout and noise, packed and padded, the adapter is that of the run without a rehearsal."""
    options = {"max_steps": 4, "precision": "fp32"} | train
    folders = [
        start(
            make_recipe(
                adapter={"rank": 4, "dropout": 0.2},
                data=_data(make_recipe, data),
                train=options | {"rehearsal": on},
            )
        )
        for on in (True, False)
    ]
    assert_equal(*map(adapter_of, folders))
    assert "rehearsed the heaviest" in folders[0].log_path.read_text()
    assert "rehearsed the heaviest" not in folders[1].log_path.read_text()


def _data(make_recipe: MakeRecipe, changes: dict[str, Any]) -> dict[str, Any]:
    return make_recipe().data.model_dump(exclude_unset=True) | changes


@pytest.mark.parametrize("packing", [{}, {"pack_length_tokens": 160}])
def test_the_heaviest_batches(make_recipe: MakeRecipe, packing: dict[str, Any]) -> None:
    """One has the longest document of all, one has as many supervised tokens as any micro-batch of the
    epoch."""
    recipe = make_recipe(
        data=_data(make_recipe, packing), train={"micro_batch_size": 1, "global_batch_size": 4}
    )
    feed = build.build_feed(recipe, build_inputs(recipe))
    heaviest = feed.heaviest()
    packs = [feed.documents_of(pack) for pack in feed.packs(0)]
    assert max(len(d.token_ids) for pack in heaviest for d in pack) == max(
        len(d.token_ids) for pack in packs for d in pack
    )
    learned = [max(sum(d.supervised_tokens for d in pack) for pack in each) for each in (heaviest, packs)]
    assert learned[0] == learned[1]
    assert all(pack in packs for pack in heaviest)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.parametrize(
    ("spare_bytes", "expected"),
    [(150_000_000, "of it does. Set "), pytest.param(4_000_000_000, None, marks=pytest.mark.long)],
)
def test_memory_that_is_not_enough(
    make_recipe: MakeRecipe, tmp_path: Path, spare_bytes: int, expected: str | None
) -> None:
    """A real process whose memory ends at the heaviest batch stops before step 1 and says what fits; with
    more, it trains."""
    tiny = Path(make_recipe().model.base)
    config = LlamaConfig.from_pretrained(
        tiny, hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8
    )
    base = tmp_path / "wider"
    LlamaForCausalLM(config).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny / name).exists():
            (base / name).write_bytes((tiny / name).read_bytes())
    recipe = make_recipe(
        model={"base": str(base)},
        data=_data(make_recipe, {"pack_length_tokens": 2048}),
        train={"micro_batch_size": 1, "global_batch_size": 1, "max_steps": 1, "precision": "fp32"},
    )
    command = [sys.executable, "-c", CROWDED_SCRIPT, recipe.model_dump_json(), str(spare_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if expected is None:
        assert done.returncode == 0, done.stderr
        return
    assert "TrainingError: out of memory: the heaviest batch" in done.stderr
    assert expected in done.stderr
    assert "data.pack_length_tokens: " in done.stderr
    assert "Nothing was trained." in done.stderr
    assert not list((tmp_path / "runs").glob("*/checkpoints/*"))


def test_generators_are_put_back() -> None:
    """What torch draws after the rehearsal is what it would have drawn without."""
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with generators_kept(torch.device("cpu")):
        torch.rand(100)
    assert torch.equal(torch.rand(4), expected)


def test_generators_of_other_gpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with several, torch would warn of all of them, and ask each."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with generators_kept(torch.device("cpu")):
            torch.manual_seed(0)


@pytest.mark.parametrize(
    ("peak", "micro", "share", "expected"),
    [
        (20, 1, 8, 8),
        (20, 1, 12, 6),
        (20, 2, 16, 16),
        (60, 1, 8, 1),
        (20, 1, 1, 1),
    ],
)
def test_a_larger_micro_batch_that_fits_is_found(peak: int, micro: int, share: int, expected: int) -> None:
    """By what weights and optimizer hold (10 of 100) and what the present one adds."""
    assert largest_micro_batch(10, peak, 100, micro, share) == expected


def test_a_share_is_counted_not_what_it_is_a_share_of() -> None:
    """Of weights that two processes have cut up between them (FSDP2) each has half of the optimizer's
    state."""
    program = """
import torch
from types import SimpleNamespace
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from finetune.recipe.schema import Recipe
from finetune.training.callbacks.memory_check import MemoryCheck

distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
model = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64, bias=False))
model.get_input_embeddings = lambda: model[0]
train = SimpleNamespace(optimizer="adamw", weights_dtype=None)
check = SimpleNamespace(recipe=SimpleNamespace(train=train), trainer=SimpleNamespace(model=model))
whole = MemoryCheck._state_bytes(check, model)
fully_shard(model)
print(whole, MemoryCheck._state_bytes(check, model))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(2 * 4 * 2 * 64 * 32), str(4 * 2 * 64 * 32)]
