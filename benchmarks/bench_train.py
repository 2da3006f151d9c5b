"""Training speed, memory and loss beside a plain peft loop on identical packs, TRL and LLaMA-Factory, in
turns in one run.

    python benchmarks/bench_train.py                       # ours and the plain loop
    python benchmarks/bench_train.py --peers VENVS         # and the peers
    python benchmarks/bench_train.py --parts qlora memory  # some of the parts

Tokens are real ones, padding aside. Each measurement is a process of its own. VENVS holds the peers' virtual
environments (VENVS/trl, VENVS/llamafactory), --scripts the programs that run them (peer_trl.py,
peer_llamafactory.py: a line of JSON each).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune.engines.launch.allocator import find_jemalloc

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
Runs = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, default=SHARED / "data" / "instruct" / "lf_alpaca_en_demo.json")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of one pack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="the folder of the peers' virtual environments")
    parser.add_argument(
        "--scripts", type=Path, default=SHARED / "bench", help="the folder of the peers' scripts"
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    asked = parser.parse_args()
    for part in asked.parts:
        PARTS[part](asked)


def speed(asked: argparse.Namespace) -> None:
    """SmolLM2-135M, documents of at most 512 tokens, packs of 2,048, bf16; all with the same allocator, if it
    is there."""
    title("135M, LoRA, bf16, all with the same allocator")
    found: Runs = {}
    for _ in range(asked.rounds):
        measure_each(found, asked, preload=find_jemalloc())
    table(found)


def defaults(asked: argparse.Namespace) -> None:
    """The same, once, each with the allocator that it takes by itself."""
    title("the same, each with its own allocator")
    found: Runs = {}
    measure_each(found, asked, preload=None)
    table(found)


def measure_each(found: Runs, asked: argparse.Namespace, *, preload: Path | None) -> None:
    """One round: ours, the plain loop and the peers, with and without activation checkpointing where that is
    cheap."""
    ours_preload = preload or find_jemalloc()
    keep(found, "ours", work(asked, "ours", preload=ours_preload))
    keep(found, "plain loop", work(asked, "plain", preload=preload))
    if asked.peers is None:
        return
    steps = ["--steps", str(asked.steps + 3), "--warmup", "3"]
    base = ["--model", str(base_folder()), "--data", str(asked.rows), *steps]
    trl = [str(asked.peers / "trl" / "bin" / "python"), str(asked.scripts / "peer_trl.py"), *base]
    factory = [
        str(asked.peers / "llamafactory" / "bin" / "python"),
        str(asked.scripts / "peer_llamafactory.py"),
        *base,
    ]
    keep(found, "TRL", output_of(trl, preload))
    keep(found, "TRL, packing", output_of([*trl, "--packing", "--batch", "4"], preload))
    keep(found, "LLaMA-Factory", output_of(factory, preload))


def checkpointed(asked: argparse.Namespace) -> None:
    """All with activation checkpointing."""
    title("135M, LoRA, bf16, activations recomputed")
    found: Runs = {}
    few, preload = argparse.Namespace(**vars(asked) | {"steps": min(asked.steps, 6)}), find_jemalloc()
    keep(found, "ours", work(few, "ours", "--checkpointing", preload=preload))
    keep(found, "plain loop", work(few, "plain", "--checkpointing", preload=preload))
    for name, script in (
        (("trl", "peer_trl.py"), ("llamafactory", "peer_llamafactory.py")) if asked.peers else ()
    ):
        command = [str(asked.peers / name / "bin" / "python"), str(asked.scripts / script), "--checkpointing"]
        command += ["--model", str(base_folder()), "--data", str(asked.rows), "--steps", str(few.steps + 3)]
        keep(found, {"trl": "TRL", "llamafactory": "LLaMA-Factory"}[name], output_of(command, preload))
    table(found)


def qlora(asked: argparse.Namespace) -> None:
    """NF4 with double quantisation, beside peft and bitsandbytes."""
    title("135M, QLoRA, bf16")
    found: Runs = {}
    few = argparse.Namespace(**vars(asked) | {"steps": min(asked.steps, 6)})
    for kind in ("ours", "plain"):
        keep(found, kind, work(few, kind, "--method", "qlora", preload=find_jemalloc()))
    table(found)


def large(asked: argparse.Namespace) -> None:
    """A 1.1B shape with random weights."""
    maker = asked.scripts / "make_llama.py"
    title("1.1B, LoRA, bf16")
    if not maker.is_file():
        print(f"left out: there is no {maker}")
        return
    found: Runs = {}
    few = argparse.Namespace(**vars(asked) | {"steps": 3})
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        subprocess.run(
            [sys.executable, str(maker), "--shape", "1.1b", str(base)], check=True, capture_output=True
        )
        # Its vocabulary is smaller than SmolLM2's, so it gets the tokenizer of the other small base.
        for path in (asked.scripts.parent / "models" / "stories260k").glob("tokenizer*"):
            (base / path.name).write_bytes(path.read_bytes())
        for kind in ("ours", "plain"):
            keep(found, kind, work(few, kind, "--template", "llama2", base=base, preload=find_jemalloc()))
    table(found)


def memory(asked: argparse.Namespace) -> None:
    """Peak memory of one document of ever more tokens: each doubling adds the same for each token."""
    title("memory of one document, LoRA, bf16")
    few, before = argparse.Namespace(**vars(asked) | {"steps": 1}), None
    with tempfile.TemporaryDirectory() as folder:
        for tokens in (512, 1024, 2048, 4096, 8192):
            rows = Path(folder) / f"{tokens}.json"
            text = " the" * (tokens - 60)
            rows.write_text(json.dumps([{"instruction": "Say it.", "input": "", "output": text}] * 4))
            few.rows = rows
            size = ["--pack", str(tokens), "--document", str(tokens)]
            peak = work(few, "ours", *size, preload=find_jemalloc())["peak_gb"]
            grown = (
                ""
                if before is None
                else f"  {(peak - before[1]) / (tokens - before[0]) * 1e6:.0f} kB a token more"
            )
            print(f"{tokens:6,} tokens {peak:6.2f} GB{grown}", flush=True)
            before = (tokens, peak)


def products(asked: argparse.Namespace) -> None:
    """What share of a step its matrix products would take back to back."""
    title("matrix products back to back, over the step's time")
    found = work(argparse.Namespace(**vars(asked) | {"steps": 2}), "ours", "--gemms", preload=find_jemalloc())
    rate = found["gemm_tflops"] / found["step_seconds"] * 1000
    print(
        f"{found['gemm_share']:.1%} of {found['step_seconds']:.2f} s; {found['gemm_tflops']:.2f} TFLOP, "
        f"{rate:.0f} GFLOP/s"
    )


def losses(asked: argparse.Namespace) -> None:
    """The losses of 60 steps beside those of the plain loop, packs of 256 tokens."""
    title("losses of 60 steps beside the plain loop's")
    few = argparse.Namespace(**vars(asked) | {"steps": 58})
    for precision in ("bf16", "fp32"):
        size = ["--pack", "256", "--document", "256", "--precision", precision]
        ours, plain = (
            work(few, kind, *size, preload=find_jemalloc())["losses"] for kind in ("ours", "plain")
        )
        worst = max(abs(one - other) / other for one, other in zip(ours, plain, strict=True))
        mean = abs(sum(ours) - sum(plain)) / sum(plain)
        print(
            f"{precision}: largest relative difference of a step {worst:.1e}, of the mean {mean:.1e}",
            flush=True,
        )


PARTS = {
    "speed": speed, "defaults": defaults, "checkpointed": checkpointed, "qlora": qlora, "large": large,
    "memory": memory, "products": products, "losses": losses,
}  # fmt: skip


def title(text: str) -> None:
    """A heading."""
    print(f"\n{text}", flush=True)


def keep(found: Runs, name: str, run: dict[str, Any]) -> None:
    """One more run of that name."""
    found.setdefault(name, []).append(run)


def table(found: Runs) -> None:
    """The median speed and the peak memory, and ours over them, a line each."""
    speeds = {name: [run["real_tokens_per_second"] for run in runs] for name, runs in found.items()}
    peaks = {name: max(run["peak_gb"] for run in runs) for name, runs in found.items()}
    print(f"{'':14} {'tokens/s':>9} {'ours is':>9} {'memory':>9} {'ours is':>8}   each run")
    for name in found:
        median = statistics.median(speeds[name])
        ratios = (
            f"{statistics.median(speeds['ours']) / median:8.2f}x {peaks[name]:6.2f} GB "
            f"{peaks['ours'] / peaks[name]:7.2f}x"
        )
        print(
            f"{name:14} {median:9.0f} {ratios}   {', '.join(f'{speed:.0f}' for speed in speeds[name])}",
            flush=True,
        )


def work(
    asked: argparse.Namespace, kind: str, *options: str, base: Path | None = None, preload: Path | None
) -> dict[str, Any]:
    """What train_work.py finds."""
    script = Path(__file__).with_name("train_work.py")
    command = [
        sys.executable,
        str(script),
        "--kind",
        kind,
        "--base",
        str(base or base_folder()),
        "--rows",
        str(asked.rows),
    ]
    return output_of([*command, "--steps", str(asked.steps), *options], preload)


def output_of(command: list[str], preload: Path | None, **variables: str) -> dict[str, Any]:
    """The JSON object in the last line that a command prints, run with these environment variables."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "LD_PRELOAD": str(preload or "")} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def base_folder() -> Path:
    """SmolLM2-135M, as the quickstart takes it."""
    from finetune.models.bases.locate import resolve_base
    from finetune.recipe.load import load_recipe

    return resolve_base(load_recipe(ROOT / "recipes" / "quickstart.yaml").recipe.model).folder


if __name__ == "__main__":
    main()
