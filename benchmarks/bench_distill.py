"""What a teacher adds to the same rows, and what it costs.

    python benchmarks/bench_distill.py                     # students of half the layers, three seeds
    python benchmarks/bench_distill.py --ways offline on_policy --rows FILE  # of alpaca rows
    python benchmarks/bench_distill.py --trl DIR           # a step beside TRL's loss, installed there
    python benchmarks/bench_distill.py --trl DIR --rows FILE  # of alpaca rows in place of generated orders
    python benchmarks/bench_distill.py --trl DIR --precision bf16
    python benchmarks/bench_distill.py --top-k             # what a teacher's likeliest tokens leave out

SmolLM2-135M learns the quickstart's task (orders as JSON) and teaches a student that is itself with half of
its layers dropped; beside it the same student learns the rows alone: same rows and steps. The teacher is
asked in each step, once before step 1 for its 64 likeliest tokens (offline), or of the student's own answers
to half of the rows (on_policy). Held-out loss per token of the rows' own answers, and the paired difference
with its 95 % interval.

--trl: one micro-batch of 4 rows, forward and backward, student and teacher of 135M, in turns: ours,
with the teacher in each step; ours, with its 64 likeliest tokens known before (forward KL, no teacher); and
padded rows with the logits of both models at every position through TRL's generalised Jensen-Shannon loss.
What padding costs depends on how unlike the rows' lengths are: orders are much alike.

--top-k: at 1,000 supervised positions, SmolLM2-135M as the teacher of itself without half of its layers: the
probability that its k likeliest tokens hold, the forward divergence by them and the whole one, and the
bytes that a position takes in the cache.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import finetune
from finetune.evaluation.report import difference

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
HELD_OUT = 64
ROWS, ROUNDS = 4, 3
WAYS: dict[str, dict[str, Any]] = {
    "online": {},
    "offline": {"top_k": 64},
    "on_policy": {"on_policy": {"fraction": 0.5, "max_new_tokens": 64}},
}
POSITIONS, KEPT = 1_000, (1, 4, 16, 64, 256, 1_024)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of the student; the teacher has 60")
    parser.add_argument(
        "--ways", nargs="+", choices=[*WAYS], default=["online"], help="how the teacher is asked"
    )
    parser.add_argument("--trl", type=Path, help="the folder of TRL's package: a step beside its loss")
    parser.add_argument("--rows", type=Path, help="alpaca rows to learn; with --trl, the first 4 of them")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="with --trl")
    parser.add_argument("--top-k", action="store_true", help="what the likeliest tokens leave out")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.trl is not None:
            losses(asked.trl)
            speed(asked.trl, asked.rows, asked.precision)
        elif asked.top_k:
            tails(Path(name))
        else:
            learn(Path(name), asked)


def rows(count: int, file: Path | None = None) -> dict[str, Any]:
    """Generated orders to learn, and others to be measured on; or a file's rows, a tenth held out."""
    if file is not None:
        train = {"path": str(file), "format": "alpaca"}
        return {"data.train": [train], "data.evaluation": {"fraction": 0.1}, "data.max_length_tokens": 512}
    return {
        "data.train": [{"generated": "orders", "split": "train", "rows": count, "format": "messages"}],
        "data.evaluation": {
            "sources": [{"generated": "orders", "split": "held_out", "rows": HELD_OUT, "format": "messages"}]
        },
    }


def learn(folder: Path, asked: argparse.Namespace) -> None:
    """A teacher, and for each seed a student of the rows alone and one of each way."""
    common: dict[str, Any] = {
        "output.folder": str(folder / "runs"), "tracking.tracker": "none", "train.epochs": None,
        "train.evaluate_every": "never", "train.save_every": "never", "train.rehearsal": False,
        "evaluate.metrics": ["loss"], "train.learning_rate": 1e-3, "train.global_batch_size": 8,
        "train.micro_batch_size": 8,
    }  # fmt: skip
    teacher = finetune.train(QUICKSTART, {**rows(600, asked.rows), **common, "train.max_steps": 60})
    finetune.prune(QUICKSTART, folder / "half", {**common, **rows(8)}, drop_layers=15)
    student = {
        **rows(400, asked.rows), **common, "model.base": str(folder / "half"), "train.max_steps": asked.steps
    }  # fmt: skip
    print(f"teacher's loss {_loss(finetune.evaluate(teacher)):.4f}", flush=True)
    for seed in range(asked.seeds):
        alone = finetune.train(QUICKSTART, {**student, "train.seed": seed})
        own = finetune.evaluate(alone)
        print(f"seed {seed}  rows alone {_loss(own):.4f}, {alone.summary['seconds']:.0f} s", flush=True)
        for way in asked.ways:
            objective = {"kind": "distill", "teacher": str(teacher.folder), **WAYS[way]}
            taught = finetune.train(QUICKSTART, {**student, "train.seed": seed, "objective": objective})
            report = finetune.evaluate(taught)
            found = difference(own.scores["loss"], report.scores["loss"])
            assert found is not None  # noqa: S101 - both are over the same rows
            # The same rows in the same steps; on-policy, half of them have another answer.
            assert way == "on_policy" or taught.summary["tokens"] == alone.summary["tokens"]  # noqa: S101
            apart = f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
            took = f"{taught.summary['tokens']:,} tokens, {taught.summary['seconds']:.0f} s"
            print(f"seed {seed}  {way} {_loss(report):.4f} ({apart}), {took}", flush=True)


def _loss(report: Any) -> float:
    return float(report.values["loss"])


def speed(trl: Path, file: Path | None, precision: str) -> None:
    """One micro-batch forward and backward, both ways in turn, three times."""
    import torch
    from peft import LoraConfig, get_peft_model

    from data_prep.table.documents import Document
    from finetune.models.batch import padded_batch
    from finetune.models.loss import IGNORE_INDEX
    from finetune.training import build
    from finetune.training.batches import batch_of
    from finetune.training.inputs import build_inputs

    sys.path.insert(0, str(trl))
    from trl.experimental.gkd import GKDTrainer

    objective = {"kind": "distill", "teacher": "base", "divergence": "jsd", "beta": 0.3, "temperature": 0.9}
    given = {**rows(32), "train.precision": precision}
    if file is not None:
        given["data.train"] = [{"path": str(file.resolve()), "format": "alpaca", "max_rows": 32}]
        given["data.max_length_tokens"] = 512
    recipe = finetune.load_recipe(QUICKSTART, {**given, "objective": objective, "adapter.dropout": 0}).recipe
    inputs = build_inputs(recipe)
    ours: Any = build.build_model(recipe, inputs)
    torch.manual_seed(0)
    random = {
        name: torch.randn_like(weight) * 0.02 for name, weight in ours.named_parameters() if "lora_B" in name
    }
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            weight.copy_(random.get(name, weight))
    documents: list[Document] = [inputs.data.train[index] for index in range(ROWS)]
    packed = batch_of(documents, packed=True, pad_token_id=0)
    padded = padded_batch(documents, 0)
    count = int(packed["shift_labels"].ne(IGNORE_INDEX).sum())
    lengths = [len(document.token_ids) for document in documents]
    print(
        f"{ROWS} rows of {min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all, {count:,} learned"
    )

    asked = {"kind": "distill", "teacher": "base", "top_k": 64}
    given["train.evaluate_every"] = "never"
    before = finetune.load_recipe(QUICKSTART, {**given, "objective": asked}).recipe
    known = build_inputs(before)
    told = build.ask_teacher(before, known)["training"].of(range(ROWS))
    offline: Any = build.build_model(before, known)

    plain = build.load_base(recipe, inputs)
    teacher = type(plain).from_pretrained(plain.config.name_or_path, dtype=plain.dtype).eval()
    config = LoraConfig(
        r=recipe.adapter.rank, lora_alpha=int(recipe.adapter.alpha), target_modules="all-linear"
    )
    student: Any = get_peft_model(
        type(plain).from_pretrained(plain.config.name_or_path, dtype=plain.dtype), config
    ).train()
    student.load_state_dict(
        {name: weight for name, weight in ours.state_dict().items() if "lora_" in name}, strict=False
    )

    def own() -> float:
        loss = ours(**packed, num_items_in_batch=count).loss
        loss.backward()
        return float(loss.detach())

    def stored() -> float:
        loss = offline(**packed, **told, num_items_in_batch=count).loss
        loss.backward()
        return float(loss.detach())

    def theirs() -> float:
        ids, mask = padded["input_ids"], padded["attention_mask"]
        with torch.no_grad():
            taught = teacher(input_ids=ids, attention_mask=mask).logits.float()
        logits = student(input_ids=ids, attention_mask=mask).logits.float()  # as accelerate makes them
        loss = GKDTrainer.generalized_jsd_loss(
            logits, taught, padded["shift_labels"], beta=0.3, temperature=0.9, reduction="sum"
        )
        (loss / count).backward()
        return float(loss.detach()) / count

    ways = {"ours": own, "offline": stored, "theirs": theirs}
    took: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, float] = {}
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, way in ways.items():
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found[name] = way()
            took[name].append(time.perf_counter() - started)
    ours, asked_before, theirs_took = (statistics.median(times[1:]) for times in took.values())
    print(f"losses {found['ours']:.7f} and {found['theirs']:.7f}")
    print(
        f"seconds {ours:.2f}, offline {asked_before:.2f}, TRL's {theirs_took:.2f}: {theirs_took / ours:.2f}x "
        f"and {theirs_took / asked_before:.2f}x"
    )


def losses(trl: Path) -> None:
    """Each divergence of random logits, ours and TRL's."""
    import torch

    from finetune.models.distillation import Divergence

    sys.path.insert(0, str(trl))
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 64, 2_000) * 3, torch.randn(2, 64, 2_000) * 3
    labels = torch.where(torch.rand(2, 64) < 0.5, torch.randint(0, 2_000, (2, 64)), -100)
    learned = labels != -100
    kinds: list[tuple[Any, float]] = [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.3)]
    for kind, beta in kinds:
        criterion = Divergence(teacher[learned], lambda logits: logits, labels[learned], kind, 0.9, beta)
        ours = criterion(student[learned].clone(), slice(None))[0].mean()
        theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=0.9)
        print(f"{kind:10}  {float(ours):.7f} and {float(theirs):.7f}")


def tails(folder: Path) -> None:
    """Full minus top-k."""
    import torch

    from finetune.models.batch import packed_batch
    from finetune.models.distillation import Likeliest, likeliest_to_gradient
    from finetune.models.logits import head_of, states_of
    from finetune.models.loss import LossInputs
    from finetune.training import build
    from finetune.training.inputs import build_inputs
    from finetune.training.teacher_store import TeacherQuery

    finetune.prune(QUICKSTART, folder / "half", rows(8), drop_layers=15)
    given = {**rows(64), "train.precision": "fp32"}
    logits, labels = [], torch.zeros(0)
    for base in ({}, {"model.base": str(folder / "half")}):
        recipe = finetune.load_recipe(QUICKSTART, {**given, **base}).recipe
        inputs = build_inputs(recipe)
        model: Any = build.load_base(recipe, inputs).eval()
        documents = [inputs.data.train[index] for index in range(64)]
        batch = packed_batch(documents)
        read = {name: batch[name] for name in ("input_ids", "position_ids", "documents")}
        positions = LossInputs(batch["shift_labels"], batch["input_ids"])
        labels = positions.at_supervised(positions.labels)[:POSITIONS]
        with torch.no_grad():
            states = positions.at_supervised(states_of(model, **read, use_cache=False)[0])[:POSITIONS]
            logits.append(head_of(model)(states))
    log_p, log_q = (own.log_softmax(-1) for own in logits)
    whole = (log_p.exp() * (log_p - log_q)).sum(-1)
    tokens = log_p.shape[1]
    print(f"{len(labels):,} positions, {tokens:,} tokens: the whole divergence {float(whole.mean()):.4f}")
    for kept in KEPT:
        teacher = Likeliest.of(logits[0], labels, kept, 1.0)
        found, _ = likeliest_to_gradient(teacher, log_q)
        held = float(-torch.expm1(teacher.log_p[:, -1]).mean())
        apart = float((whole - found).mean())
        size = TeacherQuery({}, kept, 1.0, tokens).record.itemsize
        print(
            f"k {kept:>5,}  holds {held:.4%}  divergence {float(found.mean()):.4f}, {apart:.5f} less "
            f"({apart / float(whole.mean()):.2%}), at most {float((whole - found).max()):.4f}  {size:,} bytes"
        )


if __name__ == "__main__":
    main()
