"""What an export is, for people, for JSON, and for the folder's own record."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import CheckFailed
from finetune.merging.output import failed_name

if TYPE_CHECKING:
    from finetune.exporting.llama_cpp.check import LlamaCppCheck
    from finetune.exporting.predictions import PredictionCheck
    from finetune.exporting.tensors import TensorComparison
    from finetune.merging.rounding.choice import RoundingChoice

RECORD = "export.json"
RUNS_IN = {"compressed": "transformers", "nf4": "transformers"}
"""What a format is checked in, where that isn't llama.cpp."""
TAGS = {"compressed": "[compressed-tensors]", "nf4": "[bitsandbytes]"}
"""Of a card, where they aren't [gguf]."""


@dataclass(frozen=True)
class ExportReport:
    """What was exported, where it lies, and what the checks found."""

    model: str
    """What was exported, in words."""
    base: str
    adapter: str | None
    output: str
    format: str
    quantize: str | None
    files: tuple[str, ...]
    bytes: int
    seconds: float
    """In all."""
    check_seconds: float
    """Of them, for the checks after the writing."""
    coarser: dict[str, str]
    """Tensors whose rows are no whole blocks of the type that they would have, and the type that they
    have."""
    notes: tuple[str, ...]
    tensors: "TensorComparison | None"
    """What was read back; None where nobody looked."""
    llama_cpp: "LlamaCppCheck | None"
    """What llama.cpp made of it; None where it did not run, and `not_run` says why."""
    not_run: str | None
    rounding: "RoundingChoice | None" = None
    """How what an adapter changes became 16-bit numbers; None where no weights did."""
    predictions: "PredictionCheck | None" = None
    """Of a folder for transformers: what it makes of rows; None where it did not run."""

    @property
    def failures(self) -> list[str]:
        """The bounds that don't hold, in words."""
        checks = (self.tensors, self.llama_cpp, self.predictions)
        return [wrong for check in checks if check is not None for wrong in check.failures]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"holds": not self.failures}

    def lines(self) -> list[tuple[str, str]]:
        """For a person: (name, value) a line."""
        how = self.format if self.quantize is None else f"{self.format}, {self.quantize}"
        lines = [
            ("model", self.model),
            ("output", self.output),
            ("format", f"{how}: {', '.join(self.files)}, {self.bytes / 1e6:,.1f} MB"),
            ("seconds", f"{self.seconds:,.1f}, of which {self.check_seconds:,.1f} for the checks"),
        ]
        if self.rounding is not None:
            lines.append(("rounding", self.rounding.line()))
        if self.coarser:
            kinds = sorted(set(self.coarser.values()))
            lines.append(
                (
                    "other types",
                    f"{len(self.coarser)} tensors, whose rows are no whole blocks, are {', '.join(kinds)}, "
                    "as in llama.cpp: "
                    f"{', '.join(list(self.coarser)[:3])}{' ...' if len(self.coarser) > 3 else ''}",
                )
            )
        lines += self.tensors.lines() if self.tensors is not None else []
        for check in (self.llama_cpp, self.predictions):
            lines += check.lines() if check is not None else []
        if self.not_run is not None:
            lines.append((RUNS_IN.get(self.format, "llama.cpp"), f"did not run: {self.not_run}"))
        return lines + [("note", note) for note in self.notes]

    def settle(self, folder: Path, output: Path) -> None:
        """Write the records into the folder that becomes `output`.

        Raises CheckFailed where a check doesn't hold: the folder then lies in OUTPUT.failed.
        """
        self.write(folder)
        if self.failures:
            folder.rename(failed_name(output))
            raise CheckFailed(
                f"the export does not hold: {'; '.join(self.failures)}. {output} was not created; the files "
                f"are in {failed_name(output)}, measurements in {RECORD}."
            )

    def write(self, folder: Path) -> None:
        """export.json, and README.md for whoever finds the folder."""
        (folder / RECORD).write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        base, adapter = _short(self.base), _short(self.adapter or "")
        card = ["---", f"tags: {TAGS.get(self.format, '[gguf]')}", "---", ""]
        card += [f"# {Path(self.base).name}, fine-tuned" if self.adapter else f"# {Path(self.base).name}", ""]
        card += [f"- base: {base}", *([f"- adapter: {adapter}"] if adapter else [])]
        card += [
            f"- {name}: {value}" for name, value in self.lines() if name not in ("model", "output", "seconds")
        ]
        card += ["", f"All figures are in {RECORD}."]
        (folder / "README.md").write_text("\n".join(card) + "\n", encoding="utf-8")


def _short(name: str) -> str:
    """A name without the folders of this machine."""
    return "/".join(Path(name).parts[-2:]) if name.startswith("/") else name
