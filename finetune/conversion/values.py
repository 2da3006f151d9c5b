"""What becomes of a value: one function for each `how` of the table of aliases (finetune/recipe/aliases)."""

import re
from collections.abc import Mapping

from finetune.conversion import adapter_values as adapter
from finetune.conversion import lacking as lack
from finetune.conversion import long_rows
from finetune.conversion import model_values as model
from finetune.conversion.draft import Draft
from finetune.conversion.given import GivenKey, at_least_one, name_list, number, shown, truth, whole
from finetune.conversion.lacking import How
from finetune.recipe.aliases import OPTIMIZERS, SCHEDULES, Alias

TRACKERS = (
    "wandb",
    "tensorboard",
    "mlflow",
    "swanlab",
    "trackio",
    "comet_ml",
    "clearml",
    "neptune",
    "dvclive",
)
LENGTHS = {
    "drop": "drop",
    "delete": "drop",
    "truncate": "truncate_end",
    "right": "truncate_end",
    "raise": "refuse",
    "left": "truncate_start",
    "keep_start": "truncate_end",
    "keep_end": "truncate_start",
    "split": "split",
    "true": "truncate_end",
    "longest_first": "truncate_end",
}


def _same(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    value = entry.value
    if value is None:
        draft.carried(entry, alias.ours, "not set there, nor here")
        return
    if isinstance(value, str) and alias.ours.startswith(("train.", "adapter.")):
        value = number(entry)
    draft.carry(entry, alias.ours, value)


def _unless_none(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    if entry.off:
        draft.carried(entry, alias.ours, "off there, off here")
    else:
        _same(entry, alias, draft)


def _chosen(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    draft.otherwise(entry, alias.note, alias.ours)


def _unread(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    draft.carried(entry, "", "not read by this training")


def _loss(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """Of a supervised training; of pairs it is taken before."""
    if entry.off or entry.value in ("nll", "chunked_nll", "causal_lm", "cross_entropy"):
        draft.carried(entry, alias.ours, "the cross-entropy")
    else:
        draft.drop(entry, f"loss {entry.value} is not here: the cross-entropy stands in its place")


def _yes(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    draft.carry(entry, alias.ours, truth(entry))


def _no(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    draft.carry(entry, alias.ours, not truth(entry))


def _collected(name: str) -> How:
    """For finish.py, which puts several keys together."""

    def collect(entry: GivenKey, alias: Alias, draft: Draft) -> None:
        draft.note(name, entry)

    return collect


def _batch(part: str) -> How:
    def collect(entry: GivenKey, alias: Alias, draft: Draft) -> None:
        if entry.value is None:
            draft.carried(entry, alias.ours, "not set there")
            return
        if entry.written or part not in draft.notes:
            setattr(draft.batch, part, at_least_one(entry))
            draft.notes[part] = entry
        if part == "micro":
            draft.put("train.micro_batch_size", draft.batch.micro, entry)
        draft.batch.keys.append(entry.key)
        draft.carried(entry, alias.ours if part == "micro" else "train.global_batch_size")

    return collect


def _optimizer(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    if entry.off:
        draft.carried(entry, alias.ours)
        return
    name = str(entry.value).rpartition(".")[2].lower()
    meant = OPTIMIZERS.get(name)
    if meant is None:
        draft.drop(entry, f"optimizer {entry.value} is not here: adamw stands in its place")
        return
    draft.note("optimizer", entry)
    draft.put(alias.ours, meant, entry)
    draft.carried(entry, alias.ours)


def _schedule(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    name = str(entry.value).rpartition(".")[2].lower()
    meant = "constant" if entry.value is None else SCHEDULES.get(name)
    if meant is None:
        draft.drop(entry, f"schedule {entry.value} is not here: cosine stands in its place")
        return
    draft.note("schedule", entry)
    draft.carry(entry, alias.ours, meant)


def _clip(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    draft.carry(entry, alias.ours, None if entry.off else number(entry))


def _max_steps(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    if entry.off or entry.value == -1:
        draft.carried(entry, alias.ours, "epochs decide")
    else:
        draft.carry(entry, alias.ours, whole(entry))


def _seed(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    if entry.value is None:
        draft.carried(entry, alias.ours, "any seed there, 0 here")
    else:
        draft.carry(entry, alias.ours, whole(entry))


def _keep(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    if entry.off or entry.value == -1:
        draft.otherwise(entry, "all are kept there; here the newest two", alias.ours)
    else:
        draft.carry(entry, alias.ours, whole(entry))


def _over_length(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    meant = LENGTHS.get(str(entry.value).lower())
    if entry.off:
        draft.carried(entry, alias.ours)
    elif meant is None:
        raise entry.refused(f"got {shown(entry.value)}, expected one of {', '.join(LENGTHS)}")
    else:
        draft.carry(entry, alias.ours, meant)


def _tracker(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    name = entry.key.rpartition(".")[2]
    if name in ("use_wandb", "enable_wandb"):
        draft.carry(entry, alias.ours, "wandb") if truth(entry) else draft.carried(
            entry, alias.ours, "not wandb"
        )
        return
    if entry.off:
        draft.carry(entry, alias.ours, "none")
        return
    known = [part for part in name_list(entry) if part in TRACKERS]
    if not known:
        draft.otherwise(entry, "metrics.jsonl in the run's folder, and trackio", alias.ours)
    else:
        draft.carry(entry, alias.ours, known[0] if len(known) == 1 else known)


def _folder(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    draft.carry(entry, alias.ours, str(entry.value).removeprefix("./").rstrip("/") or ".")


def _run_name(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    if entry.off:
        draft.carried(entry, alias.ours, "the recipe's file name")
        return
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(entry.value)).strip("-._")
    draft.carry(entry, alias.ours, name)


HOWS: Mapping[str, How] = {
    "same": _same,
    "unless_none": _unless_none,
    "chosen": _chosen,
    "unread": _unread,
    "loss": _loss,
    "off": lack.lacking(changes=True),
    "spare": lack.lacking(changes=False),
    "parallel": lack.lacking(changes=False, alone=1),
    "bias": lack.lacking(changes=True),
    "plugins": lack.plugins,
    "mixed": lack.mixed,
    "embedding_adapter": lack.embedding_adapter,
    "resume": lack.lacking(changes=False, off="off there; starts anew here"),
    "base": model.base,
    "revision": model.revision,
    "path": model.path,
    "template": model.template,
    "thinking": model.thinking,
    "names": model.names,
    "method": model.method,
    "bits": model.bits,
    "targets": model.targets,
    "modules": model.modules,
    "all_linear": model.all_linear,
    "yes": _yes,
    "no": _no,
    "init": adapter.init,
    "pissa": adapter.pissa,
    "loftq": adapter.loftq,
    "layers": adapter.layers,
    "start": model.start,
    "double": model.double,
    "quant_type": model.quant_type,
    "compute": model.compute,
    "micro": _batch("micro"),
    "accumulation": _batch("accumulation"),
    "whole_batch": _batch("whole"),
    "optimizer": _optimizer,
    "schedule": _schedule,
    "clip": _clip,
    "max_steps": _max_steps,
    "checkpointing": long_rows.checkpointing,
    "offloading": long_rows.offloading,
    "seed": _seed,
    "data_seed": _chosen,
    "precision": model.precision,
    "bf16": model.flag("bf16"),
    "fp16": model.flag("fp16"),
    "pure_bf16": model.pure_bf16,
    "keep": _keep,
    "over_length": _over_length,
    "tracker": _tracker,
    "folder": _folder,
    "run_name": _run_name,
    "evaluation_batch": _same,
} | {
    name: _collected(name)
    for name in (
        "max_rows",
        "length",
        "packing",
        "pack_length",
        "held_out",
        "warmup",
        "minimum_ratio",
        "minimum_rate",
        "beta1",
        "beta2",
        "betas",
        "log_every",
        "embedding_rate",
        "evaluate_every",
        "evaluate_when",
        "save_every",
        "save_when",
        "best",
        "best_metric",
        "on_inputs",
        "masked",
        "mask_history",
        "streaming",
        "shares",
        "deduplicate",
        "loss_scale",
        "dataset",
        "held_out_sources",
        "tiled_mlp",
        "tiled_mlp_shards",
    )
}
"""What becomes of a value, by the table's word for it."""
