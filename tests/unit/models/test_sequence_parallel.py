"""Rows that are cut among processes, in real processes: heads for tokens, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from finetune.errors import ModelError
from finetune.models.batch import packed_batch, sequence_part
from finetune.models.kernels.sequence_parallel import heads_of, refuse_unsplittable, split_rows
from tests.support.families import loaded, rows, save_tiny_family, tiny_config, with_adapter, without_rounding
from tests.support.kept import kept_bytes

PROCESSES = 2
CASES: dict[str, dict[str, Any]] = {
    "3 heads of 1": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16},
    "9 heads of 3": {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8},
    "4 heads of 2": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "a window": {"sliding_window": 4},
}


@pytest.mark.parametrize(
    ("heads", "key_heads", "processes", "expected"),
    [
        (9, 3, 2, [(5, [0, 1]), (4, [1, 2])]),
        (8, 2, 4, [(2, [0]), (2, [0]), (2, [1]), (2, [1])]),
        (4, 4, 2, [(2, [0, 1]), (2, [2, 3])]),
        (3, 1, 3, [(1, [0]), (1, [0]), (1, [0])]),
    ],
)
def test_each_head_is_computed_once(
    heads: int, key_heads: int, processes: int, expected: list[tuple[int, list[int]]]
) -> None:
    """Beside the key-value heads that it reads, which several processes may need."""
    shares = heads_of(heads, key_heads, processes)
    assert [head for share in shares for head in share.queries] == list(range(heads))
    assert [(len(share.queries), list(share.keys)) for share in shares] == expected


def test_the_parts_of_a_row_are_the_row() -> None:
    """Made equal by a last document without labels."""
    batch = packed_batch(rows())
    parts = [sequence_part(batch, part, 4) for part in range(4)]
    for name in ("input_ids", "position_ids", "shift_labels"):
        together = torch.cat([part[name] for part in parts], dim=1)
        assert together.shape == (1, 44)
        assert torch.equal(together[:, :43], batch[name])
    assert parts[0]["documents"] == [*batch["documents"], 1]
    assert int(parts[3]["shift_labels"][0, -1]) == -100


def outcome(model: Any, batch: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    """The loss and the gradients of what is trained; and the bytes that are kept for the backward pass, weights
    aside."""
    with kept_bytes(model.parameters()) as kept:
        loss = model(**batch, num_items_in_batch=30).loss
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    return {"loss": loss.detach(), **found}, sum(kept.values())


def shared_by_two(rank: int, folder: str) -> None:
    """One of the processes: the sum over both of losses and gradients, in a file."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", PROCESSES)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    for case in CASES:
        model = without_rounding(with_adapter(loaded(Path(folder) / case)).double())
        split_rows(model.base_model.model, PROCESSES)
        found, kept = outcome(model, sequence_part(packed_batch(rows()), rank, PROCESSES))
        for value in found.values():
            distributed.all_reduce(value)
        if rank == 0:
            torch.save((found, kept), f"{folder}/{case}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes computed of each case."""
    folder = tmp_path_factory.mktemp("two")
    for name, changes in CASES.items():
        options = {"attention_dropout": 0.0, "hidden_act": "silu"} | changes
        save_tiny_family(folder / name, "mistral", **{"sliding_window": None, "head_dim": 16} | options)
    multiprocessing.spawn(shared_by_two, (str(folder),), PROCESSES)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does(case: str, two: Path) -> None:
    """Loss and gradients of a pack, in float64 to 1e-12, in at most 0.6 of the memory for activations."""
    model = without_rounding(with_adapter(loaded(two / case)).double())
    expected, kept_by_one = outcome(model, packed_batch(rows()))
    found, kept = torch.load(two / f"{case}.pt")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-11, msg=name)
    assert 0 < kept <= 0.6 * kept_by_one


def test_fewer_heads_than_processes_are_refused() -> None:
    """With what to change."""
    with pytest.raises(ModelError, match=r"is 8, and this base has 4 attention heads.*Lower it"):
        refuse_unsplittable(tiny_config("llama"), 8)


def test_positions_by_length_are_refused() -> None:
    """No process knows a document's."""
    config = tiny_config("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(ModelError, match="scaled by the length of a document"):
        refuse_unsplittable(config, 2)
