"""Which layers of a base that is shared out are whole, and when: one process, over gloo."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = """
import json, sys
import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint
from finetune.engines.frozen import SHARED, SharedLayer, sharing_out
from finetune.engines.group import Group

LAYERS = 6
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
first_trained, recomputes, fails = int(sys.argv[2]), sys.argv[3] == "recomputes", sys.argv[3] == "fails"
told = []

class Layer(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number, self.base = number, nn.Linear(8, 8, bias=False).requires_grad_(False)
        if number >= first_trained:
            self.own = nn.Parameter(torch.ones(8))

    def forward(self, states):
        told.append(["forward", self.number, whole()])
        made = self.base(states * self.own if hasattr(self, "own") else states).tanh()
        if made.requires_grad and not recomputes:
            made.register_hook(lambda gradient: told.append(["backward", self.number, whole()]))
        return made

def whole():
    return [n for n, layer in enumerate(layers) if layer.base.weight.untyped_storage().nbytes()]

def run(states):
    for layer in layers:
        states = checkpoint(layer, states, use_reentrant=False) if recomputes else layer(states)
    return states

torch.manual_seed(0)
layers = [Layer(number) for number in range(LAYERS)]
weights = [layer.base.weight.clone() for layer in layers]
share = sharing_out(torch.device("cpu"), Group(0, 1, 0))
for layer in layers:
    # The parameters that train are an adapter's, beside the layer.
    own = layer._parameters.pop("own", None)
    share(layer)
    if own is not None:
        layer.own = own
x = torch.ones(1, 8, requires_grad=False)
fetch_one = SharedLayer.fetch
SharedLayer.fetch = lambda self: (fetch_one(self), told.append(["fetch", 0, whole()]))
if fails:
    shared = getattr(layers[0], SHARED)
    fetch, shared.fetch = shared.fetch, lambda: (_ for _ in ()).throw(RuntimeError("no memory"))
    for _ in range(2):
        try:
            run(x)
        except RuntimeError as error:
            told.append(str(error))
    shared.fetch = fetch
for _ in range(2):
    run(x).sum().backward()
after = whole()
states = x
for weight, layer in zip(weights, layers):
    states = torch.nn.functional.linear(states * getattr(layer, "own", 1), weight).tanh()
grads = [layer.own.grad / 2 for layer in layers if hasattr(layer, "own")]
expected = torch.autograd.grad(states.sum(), [layer.own for layer in layers if hasattr(layer, "own")])
print(json.dumps([told, after, all(map(torch.equal, grads, expected))]))
"""


def told_by(tmp_path: Path, first_trained: int, how: str) -> tuple[list[Any], list[int], bool]:
    """What the layers say, which are whole at the end, and whether gradients are those of whole layers."""
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(first_trained), how]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told, after, equal = json.loads(done.stdout.splitlines()[-1])
    return told, after, equal


def test_two_layers_are_whole_at_a_time(tmp_path: Path) -> None:
    """The one that computes and the next, forward and backward; none afterwards."""
    told, after, equal = told_by(tmp_path, 0, "plainly")
    assert [entry for entry in told if entry[0] == "forward"][:6] == [
        ["forward", number, [number, number + 1][: 6 - number]] for number in range(6)
    ]
    assert max(len(whole) for _, _, whole in told) == 2
    assert (after, equal) == ([], True)


def test_recomputed_layers(tmp_path: Path) -> None:
    """Their weights are there again in the backward pass, with the one before them."""
    told, after, equal = told_by(tmp_path, 0, "recomputes")
    assert [number for kind, number, _ in told if kind == "forward"][:12] == [
        0,
        1,
        2,
        3,
        4,
        5,
        5,
        4,
        3,
        2,
        1,
        0,
    ]
    assert max(len(whole) for _, _, whole in told) == 2
    assert (after, equal) == ([], True)


def test_what_lies_below_the_trained_layers_is_not_fetched_again(tmp_path: Path) -> None:
    """No gradient goes there."""
    told, after, equal = told_by(tmp_path, 3, "plainly")
    assert {number for kind, number, _ in told if kind == "backward"} == {3, 4, 5}
    assert (after, equal) == ([], True)


def test_a_layer_that_could_not_be_fetched_is_fetched_the_next_time(tmp_path: Path) -> None:
    """An error comes as it is, however often, and leaves the layer as it was."""
    told, after, equal = told_by(tmp_path, 0, "fails")
    assert [entry for entry in told if isinstance(entry, str)] == ["no memory"] * 2
    assert (after, equal) == ([], True)
