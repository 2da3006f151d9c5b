"""Runs that train together: each in a thread of its own, one of them at a time, and one pass through their
common base for all.

A run goes its ordinary way, and waits in two places: where its micro-batch comes to the decoder, and where
its own backward pass has come back to it. When all runs wait, the decoder takes them all on
(finetune.models.adapters.joint). So clipping, schedules, logs, evaluations and checkpoints are those of a run
alone, and a run that ends, however it does, is one less in the next pass. Threads take turns in one order, so
that nothing depends on their timing.
"""

import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.state import GradientState
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from finetune import signals
from finetune.engines.frozen import sharing_out
from finetune.engines.group import ALONE, Group
from finetune.engines.launch.allocator import one_arena
from finetune.engines.memory import memory_advice
from finetune.errors import ModelError, PeerLost, TrainingError
from finetune.models.adapters.joint import AdapterBatch, JointDecoder
from finetune.models.architectures.base import DECODER
from finetune.models.by_layer import empty_layers
from finetune.models.device import choose_device
from finetune.models.sharing import sharing_weights

logger = logging.getLogger(__name__)

SECONDS_TO_COME = 60.0
"""How long the processes wait for each other where a run has failed in one of them."""


class Member:
    """One of the runs, as its own thread sees it."""

    def __init__(self, name: str, company: "Company"):
        self.name, self.company = name, company
        self.folder: Path | None = None
        """The run's, once it is made."""
        self.batch: AdapterBatch | None = None
        """What waits for the decoder."""
        self.states: torch.Tensor | None = None
        """What the decoder made of it, of which the member's loss is the gradient."""
        self.autocast: torch.dtype | None = None
        self._computes_together = False
        self._seed = 0

    def base(self, load: Callable[[], PreTrainedModel], facts: dict[str, Any]) -> PreTrainedModel:
        """The company's base as a model of this member's own, which shares its weights. `facts` are what has
        to be the same for all. Raises ModelError where it isn't."""
        return self.company.base_for(self, load, facts)

    @property
    def shares_out(self) -> bool:
        """Whether the processes each hold a part of the base."""
        return self.company.shares_out

    @property
    def asked(self) -> signals.Requests:
        """What signals ask of all runs, the same from one pass to the next: all of them stop, or save,
        after the same one."""
        return self.company.asked

    @property
    def comes_too_late(self) -> bool:
        """Whether all were asked to stop before this one began."""
        return self.company.ends

    @property
    def passes(self) -> int:
        """How often the runs were computed together."""
        return self.company.passes

    def leaves(self, error: BaseException) -> bool:
        """Whether the others continue after this error. They don't where it isn't every process's: the
        rest wait for this one in the midst of the member's step."""
        return self.company.survives(self.name, error)

    def takes_part(self, model: Any, prepare: Callable[[nn.Module], None]) -> None:
        """The member's model is ready: its decoder is the company's where a step asks for it. `prepare` is
        called with the company's own model."""
        self.company.joins(self, model, prepare)
        decoder: Any = getattr(model.get_base_model(), DECODER)
        own_forward = decoder.forward

        def forward(**inputs: Any) -> Any:
            if not self._computes_together:
                return own_forward(**inputs)
            # Once a micro-batch: what is asked of the model behind it (a teacher without the adapter) is the
            # member's own.
            self._computes_together = False
            return BaseModelOutputWithPast(last_hidden_state=self._decoded(inputs))

        decoder.forward = forward

    @contextmanager
    def together(self, seed: int) -> Iterator[None]:
        """While this lasts the member's forward and backward pass are of a training step: its decoder is
        computed with the others'. `seed` is what dropout is drawn from."""
        self._computes_together, self._seed = True, seed
        try:
            yield
        finally:
            self._computes_together = False
        self.company.wait()  # until the gradients went through the decoder

    def _decoded(self, inputs: dict[str, Any]) -> torch.Tensor:
        device = self.company.device
        self.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self.batch = AdapterBatch(self.name, inputs, self._seed)
        self.company.wait()
        assert self.states is not None  # noqa: S101 - the company made them
        return self.states


class Company:
    """Runs of one base, at most so many at a time."""

    def __init__(
        self,
        most: int,
        requests: signals.Requests,
        passes: int = 0,
        group: Group = ALONE,
        *,
        shares_out: bool = False,
    ):
        """`passes` were made before, where runs are resumed. In each process of the group there is a company
        of the same runs, which have their turns in the same order; with `shares_out` they share out the
        base's layers (finetune.engines.frozen)."""
        self.most, self.passes, self.shares_out = most, passes, shares_out
        self.group, self._beside = group, group.beside()
        self._requests, self.asked = requests, signals.Requests()
        self.take_arena = one_arena()
        self.device = "cpu"
        self._base: PreTrainedModel | None = None
        self._facts: dict[str, Any] = {}
        self._decoder: JointDecoder | None = None
        self._turns: list[_Turn] = []
        self._mine = threading.local()
        self._lost: BaseException | None = None
        self._failed: BaseException | None = None

    @property
    def ends(self) -> bool:
        """Whether a signal asked all runs to stop."""
        return self.asked.stop is not None

    def run(self, runs: Iterable[tuple[str, Callable[[Member], None]]]) -> None:
        """Carry the runs out, each a name and what its thread does; one is taken when there is room for it. A
        run that raises an error is left, and the others continue; what became of it is the run's own to keep.

        Raises KeyboardInterrupt, and errors of the common pass, when they have ended every run.
        """
        waiting = iter(runs)
        try:
            while self._fill(waiting):
                self._hear()
                self._let_all()
                together = [turn for turn in self._turns if turn.member.batch is not None]
                if together:
                    with memory_advice(together=True):
                        self._compute(together)
        except BaseException as error:
            self._lost = error
            for turn in self._turns:
                turn.end(error)
            raise

    def _fill(self, waiting: Iterator[tuple[str, Callable[[Member], None]]]) -> bool:
        """Begin as many as there is room for; whether there are any."""
        while len(self._turns) < self.most and (new := next(waiting, None)) is not None:
            self._turns.append(_Turn(Member(new[0], self), new[1], self._mine))
        return bool(self._turns)

    def survives(self, name: str, error: BaseException) -> bool:
        """See Member.leaves. Two runs may fail at once, each in another process."""
        if self._lost is not None or isinstance(error, PeerLost):
            self._failed = self._lost or error
            return False
        if self.group.say_the_same(self._beside, f"{self.passes} {name}", SECONDS_TO_COME):
            return True
        self._failed = TrainingError(
            f"{name} failed in process {self.group.rank} alone, where all others wait for it, so every run "
            f"ended: {type(error).__name__}: {error}"
        )
        return False

    def _hear(self) -> None:
        """What signals asked of any process is asked of all.

        Raises TrainingError where the processes don't have the same runs: their sums would be of others'.
        """
        if self.group.those_that_differ(" ".join(turn.member.name for turn in self._turns)):
            raise TrainingError("the processes don't train the same runs any more; resume them.")
        stop = self.group.most(self._requests.stop or 0)
        self.asked.stop = signal.Signals(stop) if stop else None
        self.asked.saves = self.group.most(self._requests.saves)

    def wait(self) -> None:
        """Called by a member's thread: let the others have their turn. Raises what ended all runs."""
        turn: _Turn = self._mine.turn
        with _own_gradient_state():
            turn.give_back()
        if self._lost is not None:
            raise self._lost

    def base_for(
        self, member: Member, load: Callable[[], PreTrainedModel], facts: dict[str, Any]
    ) -> PreTrainedModel:
        """See Member.base."""
        if self._base is None:
            base = load()
            if self.shares_out:
                self._share_out(base)
            self._base, self._facts, self.device = base, facts, base.device.type
        different = [name for name, fact in facts.items() if fact != self._facts.get(name)]
        if different:
            name = different[0]
            raise ModelError(
                f"{name} is {facts[name]}, and that of the runs before this {self._facts[name]}; runs that "
                "train together share it. Train this one alone."
            )
        return sharing_weights(self._base)

    def _share_out(self, base: Any) -> None:
        """Layer by layer: no more than one is whole on the device, where all else is too."""
        layers, device, filling = getattr(base, DECODER).layers, choose_device(), empty_layers(base)
        share = sharing_out(device, self.group)
        if filling is not None:
            filling.fill(device, share)
        else:
            for layer in layers:
                share(layer)
        inside = set(layers.modules())
        for module in base.modules():
            if module not in inside and next(module.children(), None) is None:
                module.to(device)

    def joins(self, member: Member, model: Any, prepare: Callable[[nn.Module], None]) -> None:
        """See Member.takes_part."""
        if self._decoder is None:
            assert self._base is not None  # noqa: S101 - a member's model is of it
            own = sharing_weights(self._base).to(next(model.parameters()).device)
            self._decoder = JointDecoder(own)
            prepare(own)
        self._decoder.join(member.name, model)

    def _let_all(self) -> None:
        """Let each run come to where it waits for the others, or to its end."""
        for turn in list(self._turns):
            turn.let()
            if self._failed is not None:
                raise self._failed
            if turn.ended:
                self._turns.remove(turn)
                if self._decoder is not None:
                    self._decoder.leave(turn.member.name)
                del turn
                gc.collect()  # a trainer is full of cycles, and what it held is for those that come

    def _compute(self, turns: "list[_Turn]") -> None:
        """One pass through the decoder, forward and, when the members' losses are there, backward."""
        assert self._decoder is not None  # noqa: S101 - members have joined
        members = [turn.member for turn in turns]
        self.passes += 1
        autocast = members[0].autocast
        with torch.autocast(self.device, dtype=autocast) if autocast is not None else nullcontext():
            made = self._decoder([member.batch for member in members if member.batch is not None])
        for member, states in zip(members, made, strict=True):
            member.batch, member.states = None, states.detach().requires_grad_()
        self._let_all()
        pairs = [
            (states, member.states.grad)
            for member, states in zip(members, made, strict=True)
            if member.states is not None and member.states.grad is not None
        ]
        for member in members:
            member.states = None
        if pairs:
            torch.autograd.backward([states for states, _ in pairs], [gradient for _, gradient in pairs])


@contextmanager
def _own_gradient_state() -> Iterator[None]:
    """accelerate has one state for all trainers of a process: whether this micro-batch is a step's last, and
    whose data are read. After this it is what it was before."""
    state = GradientState._shared_state
    before = dict(state)
    try:
        yield
    finally:
        state.clear()
        state.update(before)


class _Turn:
    """A member's thread, which runs while `let` lasts and waits otherwise."""

    def __init__(self, member: Member, work: Callable[[Member], None], mine: threading.local):
        self.member, self.ended = member, False
        self._go, self._gave_back = threading.Semaphore(0), threading.Semaphore(0)
        self._runs = False

        def run() -> None:
            mine.turn = self
            member.company.group.take_device()  # a thread begins with the first
            member.company.take_arena()
            self._go.acquire()
            try:
                work(member)
            except BaseException as error:  # noqa: BLE001 - the run has kept it, and the others go on
                logger.debug("%s ended: %s", member.name, error)
            finally:
                self.ended = True
                self._gave_back.release()

        self._thread = threading.Thread(target=run, name=member.name, daemon=True)
        self._thread.start()

    def let(self) -> None:
        """Until it waits, or has ended."""
        self._runs = True
        self._go.release()
        self._gave_back.acquire()
        self._runs = False
        if self.ended:
            self._thread.join()

    def give_back(self) -> None:
        """Called by the thread: wait for the next turn."""
        self._gave_back.release()
        self._go.acquire()

    def end(self, error: BaseException) -> None:
        """Let the thread come to its end, where it waits with what ended all."""
        if self._runs:  # it was interrupted while the thread had its turn
            self._gave_back.acquire()
            self._runs = False
        while not self.ended:
            self.let()
