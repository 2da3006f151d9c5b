"""A run as an object: what finetune.train returns."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.schema import Recipe
from finetune.runs.compare import Comparison, compare, is_metric
from finetune.runs.folder import open_run

if TYPE_CHECKING:
    from finetune.evaluation.report import Report
    from finetune.loaded_model import Model
    from finetune.merging.merge import MergeReport
    from finetune.training.reproduce import Reproduction


class Run:
    """A run folder: what was trained, and what became of it.

    Raises CheckpointError where the folder isn't one.
    """

    def __init__(self, folder: str | Path):
        self._run = open_run(Path(folder).expanduser().resolve())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.folder == other.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, status={self.status!r})"

    @property
    def folder(self) -> Path:
        """Where everything of the run is."""
        return self._run.path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._run.name

    @property
    def status(self) -> str:
        """running, finished, stopped (resume it), failed, or interrupted (killed; resume it)."""
        return str(self._run.outcome()["status"])

    @property
    def summary(self) -> dict[str, Any]:
        """What became of it: summary.json."""
        return self._run.outcome()

    @property
    def lock(self) -> Lock:
        """What it was made of: recipe, base, data, versions, machine."""
        return read_lock(self._run.lock_path)

    @property
    def recipe(self) -> Recipe:
        """What was trained."""
        return self.lock.recipe

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of the summary alone: evaluation_loss, tokens_per_second, final/exact_match ..."""
        found = self.summary.items()
        return {name: value for name, value in found if is_metric(name) and isinstance(value, int | float)}

    def curves(self) -> list[dict[str, Any]]:
        """What was logged in training, an entry a logged step, each with its `step`: metrics.jsonl."""
        from finetune.runs.plot import read_metrics

        return read_metrics(self._run)

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter, which peft loads; of a run that trained all weights there is
        `model/`."""
        return self._run.adapter

    def merge(self, output: str | Path | None = None, **options: Any) -> "MergeReport":
        """Merge the adapter into full weights, in RUN/merged where no output is given; see finetune.merge."""
        from finetune import api

        return api.merge(self, output if output is not None else self.folder / "merged", **options)

    def resume(self, **options: Any) -> "Run":
        """Resume the run; see finetune.resume."""
        from finetune import api

        return api.resume(self, **options)

    def load(self, **options: Any) -> "Model":
        """The trained model, to generate with; see finetune.load."""
        from finetune import api

        return api.load(self, **options)

    def evaluate(self, **options: Any) -> "Report":
        """Its metrics on its recipe's evaluation rows; see finetune.evaluate."""
        from finetune import api

        return api.evaluate(self, **options)

    def compare(self, other: "Run") -> Comparison:
        """The metrics of both runs, and all that is recorded and could explain a difference."""
        return compare(self.lock, other.lock, (self.summary, other.summary))

    def report(self, html: str | Path, **options: Any) -> Path:
        """Write the run as one page; see finetune.report."""
        from finetune import api

        return api.report(self, html, **options)

    def reproduce(
        self,
        folder: str | Path | None = None,
        *,
        despite: Collection[str] = (),
        allow_code: Collection[str] = (),
    ) -> "Reproduction":
        """Train the run's recipe again; `.refuse_unlike()` raises where its result differs.

        On the same processor, in a process with as many threads (OMP_NUM_THREADS), it is the same bit for
        bit. The new run goes into `folder`, beside the old one where it is None. `despite` names what may
        differ: base, data, versions, code. Raises CheckpointError where something else does, or the run is
        not finished.
        """
        from finetune.training.reproduce import reproduce

        return reproduce(
            self._run,
            self.lock,
            despite=frozenset(despite),
            folder=None if folder is None else Path(folder).expanduser(),
            allow_code=frozenset(allow_code),
        )
