"""What the plan's formulas say of a run that is about to train, to be compared with what is measured then."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.preparation import PreparedData
from finetune.engines.base import Engine
from finetune.errors import ModelError
from finetune.planning.data import assumed, measured
from finetune.planning.job import job_on, refuse_without_formula
from finetune.planning.memory import memory_of
from finetune.recipe.schema import Recipe


def foresee(
    recipe: Recipe,
    folder: Path,
    data: PreparedData,
    *,
    precision: str,
    engine: Engine,
    processes: int,
    device: str,
) -> dict[str, Any]:
    """Steps, tokens of all of them, trained parameters, and the bytes of one process, as plain values.

    `folder` is the base's, `device` is cpu or gpu. Of a method without a formula `left_out` says why.
    """
    load = assumed(recipe, "streamed") if data.report.streamed else measured(recipe, data)
    found: dict[str, Any] = {"steps": load.steps, "tokens": load.tokens}
    try:
        refuse_without_formula(recipe)
        _, job = job_on(folder, recipe, load, precision, gpus=processes, device=device, engine=engine)
    except ModelError as error:
        return found | {"left_out": str(error)}
    memory = memory_of(job)
    return found | {
        "trainable_parameters": job.trained,
        "memory_bytes": memory.total,
        "memory": asdict(memory),
    }
