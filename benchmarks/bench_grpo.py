"""What rewards bring to a model that a little supervised training has begun, and what they can't.

    python benchmarks/bench_grpo.py                        # three seeds
    python benchmarks/bench_grpo.py --seeds 1 --start RUN  # from a supervised run that is there
    python benchmarks/bench_grpo.py --seeds 2 --first 1    # seeds 1 and 2
    python -m benchmarks.bench_grpo --gamed                # a reward that can be had without doing the task
    python benchmarks/bench_grpo.py --trl DIR              # the losses beside TRL's, installed there

SmolLM2-135M learns the quickstart's task (orders as JSON) for 20 steps, and goes on from there by the rewards
of its own answers: whether they are JSON of the right fields, and equal to the row's. Held-out orders share
no template and no value with those that are learned; their exact match of greedy answers is measured before
and after, with 95 % intervals, and of the merged weights.

--gamed: a tiny model that knows three answers by heart, one of which has numbers, is rewarded for numbers.

--trl: random log-probabilities, advantages and lengths through our losses and TRL's, in float32.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetune
from finetune.evaluation.report import difference

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
RECIPE = ROOT / "recipes" / "grpo" / "orders.yaml"
HELD_OUT = 128
START = {
    "data.train.0.rows": 720, "train.epochs": None, "train.max_steps": 20, "train.learning_rate": 1e-3,
    "train.global_batch_size": 8, "train.micro_batch_size": 8,
}  # fmt: skip


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--start", type=Path, help="a supervised run to go on from, in place of a new one")
    parser.add_argument("--gamed", action="store_true", help="a tiny model, rewarded for numbers")
    parser.add_argument("--trl", type=Path, help="the folder of TRL's package: our losses beside its own")
    asked = parser.parse_args()
    if asked.trl is not None:
        losses(asked.trl)
        return
    with tempfile.TemporaryDirectory() as name:
        if asked.gamed:
            gamed(Path(name))
        else:
            learn(Path(name), asked)


def learn(folder: Path, asked: argparse.Namespace) -> None:
    """A supervised start, and what rewards make of it for each seed."""
    common: dict[str, Any] = {
        "output.folder": str(folder / "runs"), "tracking.tracker": "none", "train.evaluate_every": "never",
        "train.save_every": "never", "train.rehearsal": False, "evaluate.metrics": ["exact_match"],
        "data.evaluation": {
            "sources": [{"generated": "orders", "split": "held_out", "rows": HELD_OUT, "format": "messages"}]
        },
    }  # fmt: skip
    start: Any = asked.start or finetune.train(QUICKSTART, {**common, **START})
    before = finetune.evaluate(start, QUICKSTART, common)
    print(f"supervised start: exact match {_interval(before)}", flush=True)
    changed = {**common, "adapter.continue_from": str(start if asked.start else start.folder)}
    for seed in range(asked.first, asked.first + asked.seeds):
        run = finetune.train(RECIPE, {**changed, "train.seed": seed, "train.max_steps": asked.steps})
        after = finetune.evaluate(run)
        found = difference(*(report.scores["exact_match"] for report in (before, after)))
        assert found is not None  # noqa: S101 - both are over the same rows
        merged = folder / f"merged{seed}"
        finetune.merge(run, merged)
        kept = finetune.evaluate(merged, RECIPE, common)
        rewards = [entry["train/reward"] for entry in run.curves() if "train/reward" in entry]
        tenth = max(1, len(rewards) // 10)
        print(
            f"seed {seed}  exact match {_interval(after)} ({found.value:+.3f} [{found.low:+.3f}, "
            f"{found.high:+.3f}]), merged {_interval(kept)}; reward {sum(rewards[:tenth]) / tenth:.3f} to "
            f"{sum(rewards[-tenth:]) / tenth:.3f}, {run.summary['seconds']:.0f} s",
            flush=True,
        )


def _interval(report: Any) -> str:
    found = report.scores["exact_match"].interval
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def gamed(folder: Path) -> None:
    """A tiny model that knows its answers, and what it says once numbers are rewarded."""
    import json

    from transformers import AutoTokenizer

    from tests.support.models import MEMORISED, save_tiny_llama
    from tests.support.models import learn as memorise

    save_tiny_llama(folder / "base")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "base")
    turns = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        for asked, said in MEMORISED.items()
    ]
    prompts = [
        tokenizer.apply_chat_template(one[:1], tokenize=False, add_generation_prompt=True) for one in turns
    ]
    texts = [(prompt, f"{one[1]['content']}<|im_end|>") for prompt, one in zip(prompts, turns, strict=True)]
    rows = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair) for pair in texts]
    memorise(folder / "base", rows)
    lines = "".join(json.dumps({"messages": one}) + "\n" for one in turns)
    (folder / "rows.jsonl").write_text(lines)
    source = {"path": str(folder / "rows.jsonl"), "format": "messages"}
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({
        "model": {"base": str(folder / "base")}, "adapter": {"rank": 8},
        "data": {
            "train": [source], "evaluation": {"sources": [source]}, "clean": {"leakage": "keep"},
            "allow_findings": ["leakage"], "max_length_tokens": 96,
        },
        "objective": {
            "kind": "grpo", "group_size": 16, "max_new_tokens": 32, "temperature": 1.5,
            "rewards": {"has_a_number": {"kind": "regex", "pattern": "[0-9]"}},
        },
        "train": {
            "precision": "fp32", "learning_rate": 3e-3, "schedule": "constant", "max_steps": 40,
            "global_batch_size": 3, "micro_batch_size": 3, "evaluate_every": "never", "rehearsal": False,
        },
        "evaluate": {"metrics": ["exact_match"]}, "tracking": {"tracker": "none"},
        "output": {"folder": str(folder / "runs")},
    }))  # fmt: skip
    before = finetune.evaluate(folder / "base", recipe)
    run = finetune.train(recipe)
    after = finetune.evaluate(run)
    rewards = [entry["train/reward"] for entry in run.curves() if "train/reward" in entry]
    print(f"reward {rewards[0]:.3f} to {rewards[-1]:.3f}")
    print(f"exact match {before.values['exact_match']:.3f} to {after.values['exact_match']:.3f}")
    for answer in after.measured.answers:
        print(f"  {answer.question.text!r}: {answer.text!r}")


def losses(trl: Path) -> None:
    """Each loss on the same numbers: 24 answers of 1 to 40 tokens, one micro-batch."""
    import torch

    from finetune.models.policy import Loss, PolicyLoss

    sys.path.insert(0, str(trl))
    from trl import GRPOTrainer, RLOOTrainer

    torch.manual_seed(0)
    answers, longest = 24, 40
    lengths = torch.randint(1, longest + 1, (answers,))
    mask = (torch.arange(longest) < lengths[:, None]).long()
    sampler, reference = -torch.rand(2, answers, longest) * 4
    model = sampler + torch.randn(answers, longest) * 0.2
    advantages = torch.randn(answers)
    owners = torch.arange(answers).repeat_interleave(lengths)
    chosen = mask.bool()

    bounds: dict[Loss, float] = {
        "grpo": 0.2, "dapo": 0.28, "dr_grpo": 0.2, "gspo": 0.2, "cispo": 5.0, "rloo": 0.2
    }  # fmt: skip
    for kind, high in bounds.items():
        ours, _ = (loss := PolicyLoss(kind, 0.2, high, 0.05, longest))(
            model[chosen], sampler[chosen], advantages[owners], reference[chosen], owners, answers
        )
        divisor = loss.divisor(lengths)
        inputs = {
            "prompt_ids": mask[:, :1], "prompt_mask": mask[:, :1], "completion_ids": mask,
            "completion_mask": mask, "advantages": advantages, "old_per_token_logps": sampler,
            "ref_per_token_logps": reference, "num_items_in_batch": lengths.sum(),
            "old_logps": (sampler * mask).sum(1),
        }  # fmt: skip
        trainer = GRPOTrainer if kind != "rloo" else RLOOTrainer
        theirs = trainer._compute_loss(_trainer_like(torch, model, kind, high, longest), None, inputs)
        if kind == "rloo":  # which has the divergence in its rewards
            ours, _ = PolicyLoss(kind, 0.2, high, 0.0, longest)(
                model[chosen], sampler[chosen], advantages[owners], reference[chosen], owners, answers
            )
        print(f"{kind:8} {float(ours / divisor):+.7f}  TRL {float(theirs):+.7f}")


def _trainer_like(torch: Any, model: Any, kind: str, high: float, longest: int) -> Any:
    """What TRL's _compute_loss reads of its trainer, one micro-batch of one process."""
    from collections import defaultdict

    def identity(tensor: Any, **_: Any) -> Any:
        return tensor

    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (model, torch.zeros_like(model), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if kind == "gspo" else "token", beta=0.05,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        loss_type="grpo" if kind == "gspo" else kind, epsilon_low=0.2, epsilon_high=high, use_vllm=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=longest, _entropy_bonus_enabled=False, use_adaptive_entropy=False,
        _metrics={mode: defaultdict(list) for mode in ("train", "eval")},
        accelerator=SimpleNamespace(
            num_processes=1, gather=identity, reduce=identity, gather_for_metrics=identity
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
