"""How fast answers are made, beside transformers' own `generate` on the same prompts, a process for each.

    python benchmarks/bench_generate.py                                        # the whole of it
    python benchmarks/bench_generate.py --prompts 8 --longest 60               # in minutes
    python benchmarks/bench_generate.py --precision fp32 --base FOLDER

Samples: pieces of the manual, of 100 to 200 tokens, with several answers each, of 20 to 200 tokens, drawn at
temperature 1 with top-p 1 and 0.9. The number of tokens is drawn beforehand, the same for both, and no token
ends an answer earlier. transformers gets prompts sorted by length, so many at a time that they make as many
rows (num_return_sequences), padded on the left, and ends a batch when its longest answer is whole. Greedy: 32
of the prompts, 64 tokens each. `peak` is that of resident memory, over the model's before anything is asked;
on a GPU that of its tensors.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_train import ROOT, base_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria

from finetune.generation.generate import pieces_of
from finetune.generation.request import Request, Speaker
from finetune.models.device import choose_device, choose_precision

PROMPT_TOKENS, LEAST_TOKENS, GREEDY_TOKENS = (100, 200), 20, 64
WAYS = {"samples, top-p 1": 1.0, "samples, top-p 0.9": 0.9, "greedy": None}


def main() -> None:
    """A line for each way, with both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8, help="answers to each prompt")
    parser.add_argument("--rows", type=int, default=64, help="answers at a time, of both")
    parser.add_argument("--longest", type=int, default=200, help="tokens of the longest answer")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--base", type=Path, help="a folder, in place of SmolLM2-135M")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--kind", choices=["ours", "transformers"], help="one of the two, in this process")
    asked = parser.parse_args()
    asked.base = asked.base or base_folder()
    if asked.kind:
        print(json.dumps(measured(asked)))
        return
    precision = choose_precision(asked.precision).name
    print(
        f"{asked.prompts} prompts x {asked.samples} answers, {asked.rows} at a time, {precision}", flush=True
    )
    for way in asked.ways:
        ours, theirs = (in_process(asked, kind, way) for kind in ("ours", "transformers"))
        speeds = [found["tokens"] / found["seconds"] for found in (ours, theirs)]
        print(
            f"{way:<20} ours {speeds[0]:8,.0f} tokens/s, peak {ours['peak'] / 1e9:5.2f} GB   transformers "
            f"{speeds[1]:8,.0f} tokens/s, peak {theirs['peak'] / 1e9:5.2f} GB   {speeds[0] / speeds[1]:.1f}x",
            flush=True,
        )


def in_process(asked: argparse.Namespace, kind: str, way: str) -> dict[str, float]:
    """What a process of its own measures."""
    options: dict[str, object] = {"prompts": asked.prompts, "samples": asked.samples, "rows": asked.rows}
    options |= {"longest": asked.longest, "precision": asked.precision, "base": asked.base}
    options |= {"kind": kind, "ways": way}
    command = [sys.executable, __file__, *(str(part) for pair in options.items() for part in _option(*pair))]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return dict(json.loads(found.stdout.splitlines()[-1]))


def _option(name: str, value: object) -> tuple[str, object]:
    return f"--{name}", value


def measured(asked: argparse.Namespace) -> dict[str, float]:
    """Seconds, tokens and bytes of one way, after a few tokens that aren't counted."""
    tokenizer = AutoTokenizer.from_pretrained(asked.base)
    model: Any = AutoModelForCausalLM.from_pretrained(
        asked.base, dtype=choose_precision(asked.precision).dtype
    )
    model = model.to(choose_device()).eval()
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
    (way,) = asked.ways
    prompts, lengths = texts_of(tokenizer, asked)
    if WAYS[way] is None:
        prompts, lengths, asked.samples = prompts[:32], [[GREEDY_TOKENS]] * 32, 1
    work = {"ours": ours, "transformers": theirs}[asked.kind]
    work(model, tokenizer, prompts[:1], [lengths[0][:1]], WAYS[way], asked.rows)
    before = peak(reset=True)
    started = time.perf_counter()
    tokens = work(model, tokenizer, prompts, lengths, WAYS[way], asked.rows)
    return {"seconds": time.perf_counter() - started, "tokens": tokens, "peak": peak() - before}


def texts_of(tokenizer: Any, asked: argparse.Namespace) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts, and the lengths of their answers."""
    draw = random.Random(0)
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    ids, prompts, first = tokenizer(text)["input_ids"], [], 0
    for _ in range(asked.prompts):
        length = draw.randint(*PROMPT_TOKENS)
        prompts.append(ids[first : first + length])
        first += length
    return prompts, [
        [draw.randint(LEAST_TOKENS, asked.longest) for _ in range(asked.samples)] for _ in prompts
    ]


def ours(
    model: Any, tokenizer: Any, prompts: list[list[int]], lengths: list[list[int]], top_p: Any, rows: int
) -> int:
    """How many tokens the batch whose rows join and leave made."""
    speaker = Speaker(None, tokenizer)
    speaker.ends = frozenset()
    pairs = [(prompt, own) for prompt, several in zip(prompts, lengths, strict=True) for own in several]
    requests = [
        Request(speaker, prompt, length, 0.0 if top_p is None else 1.0, top_p or 1.0, index=number)
        for number, (prompt, length) in enumerate(pairs)
    ]
    return sum(1 for _ in pieces_of(model, requests, rows=rows))


def theirs(
    model: Any, tokenizer: Any, prompts: list[list[int]], lengths: list[list[int]], top_p: Any, rows: int
) -> int:
    """How many tokens of those that transformers made are anybody's."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    several = len(lengths[0])
    options: dict[str, Any] = {"do_sample": False}
    if top_p is not None:
        options = {
            "do_sample": True,
            "top_p": top_p,
            "top_k": 0,
            "num_return_sequences": several,
        }
    torch.manual_seed(0)
    for start in range(0, len(order), max(1, rows // several)):
        chosen = order[start : start + max(1, rows // several)]
        longest = max(len(prompts[index]) for index in chosen)
        tokens = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, index in enumerate(chosen):
            own = len(prompts[index])
            tokens[row, longest - own :], mask[row, longest - own :] = torch.tensor(prompts[index]), 1
        ends = torch.tensor([length for index in chosen for length in lengths[index]]) + longest
        model.generate(
            tokens.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max(max(lengths[index]) for index in chosen),
            stopping_criteria=[Ends(ends.to(model.device))],
            **options,
        )
    return sum(map(sum, lengths))


class Ends(StoppingCriteria):
    """Each row has a length of its own."""

    def __init__(self, ends: torch.Tensor):
        self.ends = ends

    def __call__(  # noqa: D102
        self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


def peak(*, reset: bool = False) -> int:
    """The most bytes so far; with `reset` what is held now, from which on the most is counted."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
