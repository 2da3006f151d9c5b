"""Each cell of the matrix that says "works": two processes end where one does."""

import re
import sys
from pathlib import Path

import pytest

from finetune.engines.base import METHODS
from finetune.engines.registry import of_several
from finetune.recipe.lock import read_lock
from finetune.recipe.paths import LOCK
from tests.distributed.launches import Train, accelerate_launch, difference

TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}
"""Of the trained weights after 4 steps of Adam at 1e-2, relative L2: Adam divides by the root of tiny
squares, and so magnifies differences of rounding."""


def loss_tolerance(method: str, engine: str, precision: str) -> float:
    """Of a step's loss, relative. DeepSpeed in bf16 rounds what trains before it computes, and FSDP2 the
    norms and the embedding of weights that all train, and DoRA's magnitudes; nothing else is rounded
    otherwise than in one process."""
    if precision == "fp32":
        return 1e-4
    return 2e-3 if engine.startswith("zero") or method in ("full", "dora") else 1e-6


ADAPTERS: dict[str, dict[str, object]] = {
    "dora": {"use_dora": True},
    "qlora_int8": {"method": "qlora", "quantization": "int8"},
}
IN_MINUTES = {("lora", "ddp")}
"""The cells of the quick suite. FSDP2 and ZeRO-3 have other tests there."""

CELLS = [
    pytest.param(
        method,
        engine.name,
        precision,
        marks=[] if (method, engine.name) in IN_MINUTES and precision == "fp32" else pytest.mark.long,
    )
    for method in METHODS
    for engine in of_several()
    for precision in ("fp32", "bf16")
    if engine.refusal(method, precision) is None
]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="bitsandbytes and DeepSpeed are installed on Linux only"
)


@pytest.mark.parametrize(("method", "engine", "precision"), CELLS)
def test_two_processes_end_where_one_does(train: Train, method: str, engine: str, precision: str) -> None:
    """Losses and trained weights are one process's, and the last step, which is partial, is taken as well."""
    adapter = ADAPTERS.get(method, {"method": method})
    learning_rate = 1e-3 if method == "full" else 1e-2
    sections = {"adapter": adapter, "train": {"precision": precision, "learning_rate": learning_rate}}
    alone = train(**sections)
    shared = train("--launch", engine, "--processes", "2", **sections)
    relative = loss_tolerance(method, engine, precision)
    assert difference(shared.weights(), alone.weights()) < (
        1e-4 if relative == 1e-6 else TOLERANCES[precision]
    )
    assert shared.losses() == pytest.approx(alone.losses(), rel=relative)
    # Before anything is learned only the rounding of sums differs: a loss that is itself rounded to bf16 is
    # off by 2e-3.
    assert shared.losses()[0] == pytest.approx(alone.losses()[0], rel=1e-4)
    assert shared.losses("eval/loss") == pytest.approx(alone.losses("eval/loss"), rel=relative)
    assert shared.losses("train/supervised_tokens") == alone.losses("train/supervised_tokens")
    # What fills up the last step of an epoch is no token of the rows.
    assert shared.summary()["tokens"] == alone.summary()["tokens"]
    assert shared.summary()["weights_changed"] is True


@pytest.mark.long
@pytest.mark.parametrize(
    ("adapter", "steps"),
    [
        ({"method": "miss"}, {}),
        ({"method": "vera"}, {}),
        ({"init": "eva"}, {}),
        ({"init": "corda"}, {}),
        ({"init": "lora_ga"}, {}),
        ({"method": "full"}, {"optimizer": "muon", "learning_rate": 1e-3}),
        ({}, {"optimizer": "polora", "learning_rate": 1e-3}),
        ({}, {"optimizer": "schedule_free_adamw", "schedule": "constant"}),
    ],
    ids=["miss", "vera", "eva", "corda", "lora_ga", "muon", "polora", "schedule_free_adamw"],
)
def test_ddp_trains_what_one_process_does(
    train: Train, adapter: dict[str, object], steps: dict[str, object]
) -> None:
    """Also adapters, starts and optimizers that no other engine takes."""
    sections = {"adapter": adapter, "train": {"precision": "fp32", "learning_rate": 1e-2} | steps}
    alone = train(**sections)
    shared = train("--launch", "ddp", "--processes", "2", **sections)
    assert shared.losses() == pytest.approx(alone.losses(), rel=1e-4)
    assert difference(shared.weights(), alone.weights()) < TOLERANCES["fp32"]


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_noise_and_cuts_are_one_processs(train: Train, engine: str) -> None:
    """NEFTune's noise, and documents that are cut where a pack is full, don't depend on which process has
    them."""
    sections = {
        "data": {"pack_length_tokens": 48, "pack_split": True},
        "train": {"neftune_alpha": 5.0, "precision": "fp32", "learning_rate": 1e-2},
    }
    alone, shared = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    assert shared.losses() == pytest.approx(alone.losses(), rel=1e-4)
    assert difference(shared.weights(), alone.weights()) < TOLERANCES["fp32"]
    for count in ("tokens", "supervised_tokens"):
        assert shared.summary()[count] == alone.summary()[count]


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_each_part_has_its_learning_rate(train: Train, engine: str) -> None:
    """LoRA+, a rate for the head, Adam's own numbers and a step decay end where one process does, and log the
    same rates."""
    rates = {
        "adam_betas": [0.8, 0.95], "adam_epsilon": 1e-6, "loraplus_lr_ratio": 4, "embedding_learning_rate": 1e-3,
        "schedule": "step", "step_decay_factor": 0.5, "step_decay_every": 2, "warmup_steps": 1,
    }  # fmt: skip
    sections = {"adapter": {"modules_to_save": ["lm_head"]}, "train": rates}
    alone, shared = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    assert difference(shared.weights(), alone.weights()) < TOLERANCES["fp32"]
    for kind, rate in (("", 1e-2), ("_lora_b", 4e-2), ("_embeddings", 1e-3)):
        found = shared.losses(f"train/learning_rate{kind}")
        assert found == pytest.approx([rate, rate, rate / 2, rate / 2])


@pytest.mark.long
def test_processes_round_weights_in_bf16_alike(train: Train) -> None:
    """Two processes of ddp end near one, in bf16; engines that keep float32 copies are refused by name."""
    full = {"precision": "bf16", "weights_dtype": "bf16", "learning_rate": 1e-3}
    sections = {"adapter": {"method": "full"}, "train": full}
    alone, shared = train(**sections), train("--launch", "ddp", "--processes", "2", **sections)
    assert difference(shared.weights(), alone.weights()) < 2e-2
    for engine in ("zero2", "fsdp2"):
        refused = train("--launch", engine, "--processes", "2", code=2, **sections)
        assert "can't be used with train.weights_dtype: bf16" in refused.stderr


@pytest.mark.long
def test_processes_multiply_with_a_base_in_fp8_alike(train: Train) -> None:
    """Before anything is learned ddp's loss is one process's; then a sum's rounding decides some FP8 roundings.
    The final loss is measured with the base as it was loaded, over both processes' rows."""
    sections = {"train": {"precision": "fp32", "learning_rate": 1e-3, "base_arithmetic": "fp8"}}
    alone, shared = train(**sections), train("--launch", "ddp", "--processes", "2", **sections)
    assert shared.losses()[0] == pytest.approx(alone.losses()[0], rel=1e-6)
    assert shared.losses() == pytest.approx(alone.losses(), rel=1e-3)
    name = "final/evaluation_loss"
    assert shared.summary()[name] == pytest.approx(alone.summary()[name], rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "optimizer"),
    [
        ("fsdp2", "rmsprop"),
        ("fsdp2", "adam"),
        ("zero2", "lion"),
        ("zero2", "adamw_8bit"),
    ],
)
def test_an_optimizer_that_is_not_refused_computes_with_shares(
    train: Train, engine: str, optimizer: str
) -> None:
    """Its losses are one process's."""
    sections = {"train": {"optimizer": optimizer, "max_steps": 3}}
    alone, shared = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    assert shared.losses() == pytest.approx(alone.losses(), rel=1e-4)


WEIGH = """
import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from finetune.training.callbacks import graceful_stop as callbacks

class Weigh(callbacks.GracefulStop):
    def on_step_end(self, args, state, control, model=None, **options):
        held = whole = 0
        for parameter in model.parameters():
            share = parameter.to_local() if isinstance(parameter, DTensor) else getattr(parameter, "ds_tensor", parameter)
            held += share.numel() * share.element_size()
            whole += getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        print(f"rank {distributed.get_rank()} holds {held} of {whole}", flush=True)
        return control

callbacks.GracefulStop = Weigh
from finetune.cli.app import main
main()
"""


@pytest.mark.long
@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_each_process_holds_its_share_of_an_nf4_base(train: Train, tmp_path: Path, engine: str) -> None:
    """Between steps two processes hold half of the weights each, padding aside, NF4's packed numbers
    included."""
    script = tmp_path / "weigh.py"
    script.write_text(WEIGH)
    done = train(
        command=[*accelerate_launch(engine), str(script)],
        adapter={"method": "qlora"},
        train={"max_steps": 1},
        seconds=400,
    )
    found = re.findall(r"rank (\d) holds (\d+) of (\d+)", done.stdout)
    assert {rank for rank, _, _ in found} == {"0", "1"}
    for _, held, whole in found:
        assert 0.45 < int(held) / int(whole) < 0.6, done.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "adapter"),
    [
        ("ddp", {"init": "pissa"}),
        ("zero2", {"method": "qlora", "init": "loftq"}),
        ("fsdp2", {"layers": "last 1"}),
        ("zero3", {"layers": [0]}),
    ],
    ids=str,
)
def test_an_adapter_that_starts_or_lies_otherwise_ends_where_one_process_does(
    train: Train, engine: str, adapter: dict[str, object]
) -> None:
    """Losses and trained weights are one process's, in fp32."""
    sections = {"adapter": adapter, "train": {"precision": "fp32", "learning_rate": 1e-2}}
    alone, shared = train(**sections), train("--launch", engine, "--processes", "2", **sections)
    assert difference(shared.weights(), alone.weights()) < TOLERANCES["fp32"]
    assert shared.losses() == pytest.approx(alone.losses(), rel=1e-4)


@pytest.mark.long
def test_raw_accelerate_launch_gives_the_same(train: Train) -> None:
    """`accelerate launch` with the shipped file trains the very adapter that --launch trains."""
    raw = [*accelerate_launch("ddp"), "-m", "finetune"]
    by_name = train("--launch", "ddp", "--processes", "2")
    assert difference(train(command=raw).weights(), by_name.weights()) == 0


WATCHED = """
from accelerate import Accelerator
from finetune.engines.group import Group
from finetune.engines import sharded
from finetune.models import loss
from finetune.training import outputs, trainer

def whole(*arguments, **options):
    raise AssertionError("all weights are gathered")

Accelerator.get_state_dict = whole
asked, frozen, gathered = Group.most, loss._frozen_losses, sharded.gathered_weights

def watched_loss(*arguments):
    def refused(*ignored):
        raise AssertionError("the processes are asked in a loss")

    Group.most = refused
    try:
        return frozen(*arguments)
    finally:
        Group.most = asked

def watched_weights(of, *, keep):
    found = gathered(of, keep=keep)
    print(f"rank {of.group.rank} keeps {len(found)}", flush=True)
    return found

loss._frozen_losses = watched_loss
loss._in_chunks = whole
outputs.gathered_weights = trainer.gathered_weights = watched_weights
from finetune.cli.app import main
main()
"""


@pytest.mark.long
def test_fsdp2_gathers_no_more_than_it_must(train: Train, tmp_path: Path) -> None:
    """A frozen head once a loss, without a word between the processes; of an adapter's run what is trained,
    which the main process alone keeps, for a checkpoint and for the result."""
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    shared = train(
        command=[*accelerate_launch("fsdp2"), str(script)], train={"max_steps": 2, "save_every": 1}
    )
    kept = re.findall(r"rank (\d) keeps (\d+)", shared.stdout)
    assert {count for rank, count in kept if rank == "1"} == {"0"}
    assert [int(count) for rank, count in kept if rank == "0"] == [len(shared.weights())] * 3


SMALL_CHUNKS = """
from finetune.models import sizes
from finetune.cli.app import main

sizes.CHUNK_POSITIONS = 8
main()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"adapter": {"modules_to_save": ["lm_head"]}},
        {"adapter": {"target_modules": ["q_proj", "lm_head"]}},
    ],
)
@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_the_head_is_called_as_often_in_each_process(
    train: Train, tmp_path: Path, engine: str, sections: dict[str, dict[str, object]]
) -> None:
    """Each call of a head that is cut up gathers it, so processes whose rows have more to learn must not call
    it more often."""
    script = tmp_path / "small_chunks.py"
    script.write_text(SMALL_CHUNKS)
    alone = train(**sections)
    shared = train(command=[*accelerate_launch(engine), str(script)], seconds=200, **sections)
    assert difference(shared.weights(), alone.weights()) < 1e-4
    assert shared.losses() == pytest.approx(alone.losses(), rel=1e-4)
    assert shared.losses("eval/loss") == pytest.approx(alone.losses("eval/loss"), rel=1e-4)


OF_THE_PAGE = """
import re
from pathlib import Path
from finetune.engines import registry

page = Path(registry.__file__).parents[2] / "docs" / "extending_engines.md"
made = {"__name__": "ddp_fp16"}
exec(re.search(r"```python\\n(.*?)```", page.read_text(), re.DOTALL)[1], made)
registry.ENGINES = (made["DDP_FP16"], *registry.ENGINES)
from finetune.cli.app import main
main()
"""


@pytest.mark.long
def test_the_manuals_engine_trains(train: Train, tmp_path: Path, environment: dict[str, str]) -> None:
    """Two processes of docs/extending_engines.md's engine train what ddp does, but for gradients that were
    rounded to fp16."""
    script = tmp_path / "of_the_page.py"
    script.write_text(OF_THE_PAGE)
    plain = train(command=[*accelerate_launch("ddp"), "-m", "finetune"])
    environment["FINETUNE_DDP_FP16"] = "true"
    rounded = train(command=[*accelerate_launch("ddp"), str(script)])
    assert rounded.run is not None
    assert read_lock(rounded.run / LOCK).device["engine"] == "ddp_fp16"
    assert 0 < difference(rounded.weights(), plain.weights()) < TOLERANCES["bf16"]
    assert rounded.losses() == pytest.approx(plain.losses(), rel=2e-2)
