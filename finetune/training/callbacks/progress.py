"""What a person sees while it trains: one line that moves on a terminal, a few plain lines elsewhere."""

import contextlib
import logging
import sys
import time
from typing import Any

logger = logging.getLogger(__name__)

PLAIN_LINES = 10
"""About how many lines a run prints where there is no terminal."""


def describe(step: int, total: int, metrics: dict[str, float], eta_seconds: float | None) -> str:
    """A line such as "step 12/113  loss 0.412  385 tokens/s  2.1 GB  ETA 3:05"."""
    parts = [f"step {step}/{total}"]
    if "train/loss" in metrics:
        parts += [f"loss {metrics['train/loss']:.4f}", f"{metrics['train/tokens_per_second']:,.0f} tokens/s"]
        parts += [f"{metrics['system/memory_bytes'] / 1e9:.1f} GB"]
    if "eval/loss" in metrics:
        parts += [f"evaluation loss {metrics['eval/loss']:.4f}"]
        others = ((name, value) for name, value in metrics.items() if name.startswith("eval/"))
        parts += [
            f"{name[5:]} {value:.4f}"
            for name, value in others
            if name not in ("eval/loss", "eval/perplexity") and "/" not in name[5:]  # which is a detail
        ]
    if eta_seconds is not None:
        parts += [f"ETA {int(eta_seconds) // 60}:{int(eta_seconds) % 60:02d}"]
    return "  ".join(parts)


class Progress:
    """Shows metrics as they are logged; `show` is called at each log."""

    def __init__(self, *, moves: bool = True) -> None:
        """Without `moves` there are plain lines on a terminal too, where several runs show their own."""
        self.first: tuple[float, int] | None = None
        self.printed_tenths = -1
        self.status: Any = None
        if moves and sys.stderr.isatty():
            from rich.console import Console

            self.status = Console(stderr=True).status("starting")
            self.status.start()

    def show(self, step: int, total: int, metrics: dict[str, float]) -> None:
        """One log of metrics at a step."""
        now = time.monotonic()
        if self.first is None and step > 0:
            self.first = (now, step)
        eta = None
        if self.first is not None and step > self.first[1]:
            eta = (now - self.first[0]) / (step - self.first[1]) * (total - step)
        line = describe(step, total, metrics, eta)
        tenths = step * PLAIN_LINES // max(total, 1)
        is_evaluation = "eval/loss" in metrics
        if self.status is not None and not is_evaluation:
            self.status.update(line)
        elif is_evaluation or tenths > self.printed_tenths:
            logger.info(line)
        self.printed_tenths = max(tenths, self.printed_tenths)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.status is not None:
            # A terminal that was closed can't be put in order.
            with contextlib.suppress(OSError):
                self.status.stop()
