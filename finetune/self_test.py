"""A tiny model through every way of training that this machine has, each compared with one plain process.

The model is random and its data are made here: nothing is downloaded, and nothing is learned but whether this
installation computes what it should.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data_prep.temporary import temporary_folder
from finetune.engines import registry
from finetune.engines.launch.check import check_launch, plan_launch
from finetune.engines.launch.worker import PROGRAM
from finetune.errors import FinetuneError, LaunchError
from finetune.models.device import choose_precision
from finetune.recipe.load import load_recipe
from finetune.training.provenance import versions

logger = logging.getLogger(__name__)

ENGINES = tuple(engine.name for engine in registry.of_several() if not engine.offloads)
SECONDS = 300
"""No run of the tiny model takes as long."""

RECIPE = """\
model: {{base: {base}}}
adapter: {{rank: 4}}
data:
  train: [{{generated: orders, split: train, rows: 40, format: messages}}]
  evaluation: {{fraction: 0.1}}
  max_length_tokens: 768
  pack_length_tokens: 768
train:
  {{global_batch_size: 4, max_steps: 8, precision: fp32, learning_rate: 1e-3, save_every: 4,
    deterministic: true}}
tracking: {{tracker: none}}
"""


PAIRS_RECIPE = """\
model: {{base: {base}}}
adapter: {{rank: 4}}
objective: {{kind: dpo, beta: 0.5, supervised_weight: 0.2}}
data:
  train: [{{path: {pairs}, format: preference}}]
  max_length_tokens: 128
  pack_length_tokens: 512
train:
  {{global_batch_size: 4, max_steps: 8, precision: fp32, learning_rate: 1e-3, save_every: 4,
    deterministic: true}}
tracking: {{tracker: none}}
"""


@dataclass(frozen=True)
class Case:
    """One way of training, and how far it may be from the plain one (relative)."""

    name: str
    arguments: tuple[str, ...] = ()
    tolerance: float = 1e-5
    reference: tuple[str, ...] = ()
    """What the plain run differs in, too."""
    pairs: bool = False
    """Whether it learns from pairs of answers (DPO), whose prompts are computed once."""


@dataclass(frozen=True)
class CaseResult:
    """How far it was."""

    case: Case
    loss: float
    gradient_norm: float
    weights: float
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether each difference is within the tolerance."""
        return max(self.loss, self.gradient_norm, self.weights) <= self.case.tolerance


WHOLE_EPOCH = ("train.global_batch_size=64",)
"""All documents in each step, however they are packed."""

CASES = (
    Case("micro-batches of 2", ("train.micro_batch_size=2",)),
    Case("micro-batches of 4", ("train.micro_batch_size=4",)),
    Case("unpacked", (*WHOLE_EPOCH, "data.pack_length_tokens=null"), reference=WHOLE_EPOCH),
    Case("activations recomputed", ("train.activation_checkpointing=true",)),
    Case(
        "all for long rows",
        (
            "train.activation_checkpointing=true",
            "train.activation_checkpointing_keep_attention=true",
            "train.activation_offloading=true",
            "train.mlp_tile_tokens=100",
        ),
    ),
    Case("no rehearsal", ("train.rehearsal=false",), tolerance=0.0),
    *(Case(f"{engine}, 2 processes", ("--launch", engine, "--processes", "2")) for engine in ENGINES),
    *(
        Case(
            f"{engine.name}, packs shared by 2",
            ("--launch", engine.name, "--processes", "2", "train.sequence_parallel_size=2"),
        )
        for engine in registry.of_several()
        if engine.splits_rows
    ),
    Case("dpo, micro-batches of 2", ("train.micro_batch_size=2",), pairs=True),
    Case("dpo, unpacked", (*WHOLE_EPOCH, "data.pack_length_tokens=null"), reference=WHOLE_EPOCH, pairs=True),
    *(
        Case(f"dpo, {engine}, 2 processes", ("--launch", engine, "--processes", "2"), pairs=True)
        for engine in ENGINES
    ),
)
BF16 = Case("bf16", ("train.precision=bf16",), tolerance=5e-2)
"""Where it is native: on a GPU with the attention and the loss that train there."""
KILLED = Case("killed and resumed", tolerance=0.0)
TOGETHER = (
    Case("beside another adapter"),
    *(
        Case(f"the same, {engine.name}, 2 processes", ("--launch", engine.name, "--processes", "2"))
        for engine in registry.of_several()
        if not registry.beside_frozen(engine).takes_over
    ),
)


def selftest() -> dict[str, Any]:
    """Run every case that this machine has; the report. Raises FinetuneError where the plain run itself
    fails."""
    outcomes, left_out = [], {}
    started = time.perf_counter()
    with temporary_folder("finetune-selftest-") as folder:
        recipe = folder / "selftest.yaml"
        recipe.write_text(RECIPE.format(base=save_tiny_base(folder / "base")))
        pairs = folder / "pairs.yaml"
        pairs.write_text(PAIRS_RECIPE.format(base=folder / "base", pairs=write_pairs(folder / "pairs.jsonl")))
        references = {(recipe, ()): train(folder / "plain" / recipe.stem, recipe)}
        logger.info(f"{'':28} {'loss':>9} {'gradient':>9} {'weights':>9} {'allowed':>9}")
        for case in (*CASES, *TOGETHER, *((BF16,) if native_bf16() else ())):
            learned = pairs if case.pairs else recipe
            reason = unavailable(case, learned)
            if reason is not None:
                left_out[case.name] = reason
                continue
            if (learned, case.reference) not in references:
                references[learned, case.reference] = train(
                    folder / "plain" / learned.stem, learned, *case.reference
                )
            began = time.perf_counter()
            work = together if case in TOGETHER else train
            run = work(folder / "case" / learned.stem, learned, *case.arguments)
            plain = references[learned, case.reference]
            outcomes.append(compare(case, plain, run, time.perf_counter() - began))
            logger.info(line_of(outcomes[-1]))
        began = time.perf_counter()
        run = killed_and_resumed(folder / "killed", recipe)
        outcomes.append(compare(KILLED, references[recipe, ()], run, time.perf_counter() - began))
        logger.info(line_of(outcomes[-1]))
    return {
        "versions": versions(),
        "cases": [
            {
                "name": outcome.case.name, "loss": outcome.loss, "gradient_norm": outcome.gradient_norm,
                "weights": outcome.weights, "tolerance": outcome.case.tolerance, "holds": outcome.holds,
            }
            for outcome in outcomes
        ],
        "left_out": left_out,
        "holds": all(outcome.holds for outcome in outcomes),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def native_bf16() -> bool:
    """Whether this machine computes in bf16 itself."""
    return choose_precision("auto").name == "bf16"


def line_of(outcome: CaseResult) -> str:
    """A row of the table."""
    cells = (
        f"{outcome.loss:9.1e} {outcome.gradient_norm:9.1e} {outcome.weights:9.1e} "
        f"{outcome.case.tolerance:9.0e}"
    )
    return (
        f"{outcome.case.name:28} {cells}  {'holds' if outcome.holds else 'DOES NOT HOLD'} "
        f"({outcome.seconds:.0f} s)"
    )


def unavailable(case: Case, recipe: Path) -> str | None:
    """Why a case can't be run here; None where it can."""
    if "--launch" not in case.arguments:
        return None
    try:
        check_launch(plan_launch(case.arguments[1], processes=2), load_recipe(recipe, []).recipe)
    except LaunchError as error:
        return str(error)
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        return "this machine has one GPU"
    return None


def train(output: Path, recipe: Path, *arguments: str) -> Path:
    """A run of its own process; its folder."""
    finish(command_of(output, recipe, *arguments), " ".join(arguments) or "the plain run")
    return max(output.iterdir(), key=lambda path: path.name)


def finish(command: list[str], name: str) -> None:
    """To its end. Raises FinetuneError where it fails."""
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=SECONDS
    )
    if done.returncode:
        raise FinetuneError(f"selftest: {name} failed: {done.stderr.strip()[-2000:]}")


def command_of(output: Path, recipe: Path, *arguments: str) -> list[str]:
    """`finetune train` into a folder."""
    return [sys.executable, *PROGRAM, "train", str(recipe), f"output.folder={output}", *arguments]


def environment() -> dict[str, str]:
    """One thread a process: sums of equal order."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def together(output: Path, recipe: Path, *arguments: str) -> Path:
    """A run that trains together with one of another seed."""
    variants = recipe.with_name("variants.json")
    variants.write_text(json.dumps({"plain": {}, "other": {"train.seed": 5, "adapter.rank": 8}}))
    words = ["train-many", str(recipe), "--variants", str(variants), f"output.folder={output}", *arguments]
    finish([sys.executable, *PROGRAM, *words], " ".join(words))
    return max(output.glob("plain-*"))


def killed_and_resumed(output: Path, recipe: Path) -> Path:
    """A run that was killed (SIGKILL) after its first checkpoint, and resumed."""
    process = subprocess.Popen(
        command_of(output, recipe), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + SECONDS
    while (
        process.poll() is None
        and not list(output.glob("*/checkpoints/*/complete.json"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = output.iterdir()
    if json.loads((run / "summary.json").read_text())["status"] != "finished":
        command = [sys.executable, *PROGRAM, "train", "--resume", str(run)]
        subprocess.run(command, env=environment(), capture_output=True, check=True, timeout=SECONDS)
    return run


def compare(case: Case, reference: Path, run: Path, seconds: float) -> CaseResult:
    """The largest relative differences of losses and gradient norms, and the relative L2 of the trained
    weights."""
    differences = []
    for name in ("train/loss", "train/gradient_norm"):
        one, other = (logged(folder, name) for folder in (run, reference))
        if len(one) != len(other):
            raise FinetuneError(f"selftest: {case.name} logged {len(one)} steps, the plain run {len(other)}.")
        differences.append(max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True)))
    weights = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, reference)]
    if weights[0].keys() != weights[1].keys():
        raise FinetuneError(f"selftest: {case.name} saved other weights than the plain run.")
    flat = [torch.cat([held[name].double().flatten() for name in sorted(held)]) for held in weights]
    loss, gradient_norm = differences
    return CaseResult(case, loss, gradient_norm, float((flat[0] - flat[1]).norm() / flat[1].norm()), seconds)


def logged(run: Path, name: str) -> list[float]:
    """A metric of each step."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry[name] for entry in entries if name in entry]


def write_pairs(path: Path) -> Path:
    """Forty prompts with two answers of several lengths each."""
    rows = [
        {"prompt": f"number {n}?", "chosen": f"it is {n}" * (1 + n % 2), "rejected": "no " * (1 + n % 3)}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_tiny_base(folder: Path) -> Path:
    """A random LLaMA (2 layers, width 64) with a tokenizer of single bytes and ChatML turns."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[-2:])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=tokens[-1], pad_token=tokens[-1])
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] "
        "}}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
