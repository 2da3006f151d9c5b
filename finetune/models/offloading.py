"""What goes into recomputed layers, kept in the host's memory from the forward pass to the backward pass.

On a GPU a second stream copies into pinned memory, and back while the layer after is computed: the copies of
a layer's input take less time than the layer. On the CPU the same steps copy from memory to memory.
"""

import mmap
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from finetune.errors import ModelError
from finetune.models.sizes import INPUTS_ON_DEVICE


class HostMemory:
    """The host's side of one model; buffers are made once for each layer and used in every step."""

    def __init__(self) -> None:
        self.free: list[torch.Tensor] = []
        """Buffers (bytes) of inputs that nothing needs any longer."""
        self.leaving: deque[Input] = deque()
        self.last: weakref.ref[Input] | None = None
        self.stream: torch.cuda.Stream | None = None

    def around(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpoint function whose inputs, the tensors among its positional arguments, are kept here."""

        def checkpoint_here(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(self.take, Input.give):
                return checkpoint(function, *arguments, **options)

        return checkpoint_here

    def take(self, tensor: torch.Tensor) -> "Input":
        """Begin to copy a tensor to the host."""
        if tensor.is_cuda and self.stream is None:
            self.stream = torch.cuda.Stream(tensor.device)
        taken = Input(self, tensor, self.last)
        self.last = weakref.ref(taken)
        self.leaving.append(taken)
        if len(self.leaving) > INPUTS_ON_DEVICE:
            self.leaving.popleft().leave()
        return taken

    def buffer(self, size: int, pinned: bool) -> torch.Tensor:
        """A free buffer of at least `size` bytes, the largest, or a new one."""
        if self.free:
            self.free.sort(key=lambda buffer: buffer.nbytes)
            found = self.free.pop()
            if found.nbytes >= size:
                return found
            if self.stream is not None:  # one that is large enough takes its place, once nothing reads it
                self.stream.synchronize()
        return pinned_memory(size) if pinned else torch.empty(size, dtype=torch.uint8)


class Input:
    """One tensor that was taken: on the device until it has left, and again when it is asked for."""

    def __init__(self, memory: HostMemory, tensor: torch.Tensor, before: "weakref.ref[Input] | None"):
        self.memory, self.before = memory, before
        self.on_device: torch.Tensor | None = tensor.detach()  # not its graph, which holds this
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        buffer = memory.buffer(tensor.nbytes, pinned=memory.stream is not None)
        # Back among the free ones when nothing refers to this any longer. The next copy into it waits for
        # the one out of it: both are on one stream.
        weakref.finalize(self, memory.free.append, buffer)
        self.held = buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.copied = self._copy(self.on_device, self.held)

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> torch.cuda.Event | None:
        """After all that the device was told so far; the event of its end."""
        stream = self.memory.stream
        if stream is None:
            target.copy_(source)
            return None
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
            return stream.record_event()

    def _wait(self) -> None:
        """Let what is computed next come after the copy. The memory that is freed then is used again by what
        comes after, too."""
        if self.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)

    def leave(self) -> None:
        """Let go of the tensor on the device."""
        self._wait()
        self.on_device = None

    def fetch(self) -> None:
        """Begin to copy it back, unless it is there."""
        if self.on_device is None:
            self.on_device = torch.empty(self.shape, dtype=self.dtype, device=self.device)
            self.copied = self._copy(self.held, self.on_device)

    def give(self) -> torch.Tensor:
        """The tensor on the device; the one that was taken before it, which is needed next, begins to come
        back."""
        self.memory.leaving = deque(one for one in self.memory.leaving if one is not self)
        self.fetch()
        self._wait()
        found, self.on_device = self.on_device, None
        assert found is not None  # noqa: S101 - fetched above
        before = self.before() if self.before is not None else None
        if before is not None:
            before.fetch()
        return found


def pinned_memory(size: int) -> torch.Tensor:
    """Bytes that a GPU reads and writes by itself, exactly so many: torch's own allocator of pinned memory
    rounds up to a power of two.

    Raises ModelError where the host has no more.
    """
    runtime: Any = torch.cuda.cudart()
    try:
        # Pages of its own: a page that is registered once can't be registered again with what lies beside.
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory = torch.frombuffer(pages, dtype=torch.uint8)
        torch.cuda.check_error(runtime.cudaHostRegister(memory.data_ptr(), size, 0))
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"train.activation_offloading: {size / 1e9:.2f} GB more of the host's memory, for the input of a "
            f"layer, could not be had ({' '.join(str(error).split())}). Shorten the rows, or set it to false."
        ) from error
    weakref.finalize(memory, runtime.cudaHostUnregister, memory.data_ptr()).atexit = False
    return memory
