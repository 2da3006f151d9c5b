"""What an export is asked, and what can't be honoured together."""

from dataclasses import dataclass, field

import torch

from finetune.errors import ExportError
from finetune.exporters.gguf.library import WHEEL
from finetune.exporters.gguf.types import QUANTIZATIONS
from finetune.exporting.quantized import FOLDERS, folder_format
from finetune.extras import refuse_without
from finetune.merging.rounding.request import RoundingRequest

FORMATS = ("gguf", "ollama", "vllm", *FOLDERS)
MERGED = ("mlx", "safetensors", "transformers")
"""What others call the folder that `finetune merge` writes."""
CHECKS = ("full", "tensors", "none")
SIXTEEN_BITS = {"f16": torch.float16, "bf16": torch.bfloat16}
"""The types whose rounding can be chosen."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export, as the command line asks."""

    format: str
    quantize: str | None = None
    """One of QUANTIZATIONS, f16 where it is None; of a compressed folder one of its own, which must be
    named."""
    adapter_only: bool = False
    check: str = "full"
    """full, tensors or none."""
    max_kl: float | None = None
    """The mean KL that is allowed, in nats a token; by type where it is None."""
    rank: int | None = None
    """Of what stands for a DoRA in vLLM; the adapter's own where it is None."""
    rounding: RoundingRequest = field(default_factory=RoundingRequest)
    """How the weights that an adapter changes become bf16 or f16."""
    group_size: int | None = None
    """Of integers in a compressed folder: how many have a scale together."""

    @property
    def type(self) -> str:
        """The quantisation."""
        return self.quantize or "f16"

    def refuse_bad(self) -> None:
        """Raises ExportError for a value that an option doesn't have, and for two that contradict each
        other."""
        if self.format in MERGED:
            raise ExportError(
                f"--format is {self.format!r}: finetune merge writes that folder, of safetensors as "
                "transformers and mlx_lm load them."
            )
        _refuse_unknown("--format", self.format, FORMATS)
        _refuse_unknown("--verify", self.check, CHECKS)
        self.rounding.refuse_contradictions(None)
        if self.format == "vllm":
            self._refuse_beside_vllm()
        elif self.rank is not None:
            raise ExportError("--rank is for --format vllm: leave it out.")
        if self.format in FOLDERS:
            self._refuse_beside_folders()
        elif self.group_size is not None:
            raise ExportError("--group-size is for --format compressed: leave it out.")
        if self.format in ("gguf", "ollama"):
            self._refuse_beside_gguf()
        if self.max_kl is not None:
            self._refuse_max_kl(self.max_kl)

    def _refuse_beside_vllm(self) -> None:
        self.rounding.refuse_without_rounding("--format vllm")
        given = {
            "--quantize": self.quantize is not None,
            "--adapter-only": self.adapter_only,
            "--verify": self.check != "full",
            "--max-kl": self.max_kl is not None,
        }
        found = [option for option, is_there in given.items() if is_there]
        if found:
            raise ExportError(
                f"{' and '.join(found)} with --format vllm: it writes the adapter in float32, and always "
                "compares it. Leave it out."
            )
        if self.rank is not None and self.rank < 1:
            raise ExportError(f"--rank is {self.rank}; expected a whole number from 1.")

    def _refuse_beside_folders(self) -> None:
        if self.adapter_only:
            raise ExportError(f"--adapter-only is for --format gguf: {self.format} is exported whole.")
        folder_format(self.format, self.quantize, self.group_size)
        reason = "its linear layers are rounded to the nearest number of their type"
        self.rounding.refuse_without_rounding(f"--format {self.format}", reason)

    def _refuse_beside_gguf(self) -> None:
        _refuse_unknown("--quantize", self.type, tuple(QUANTIZATIONS))
        if self.type not in SIXTEEN_BITS:
            self.rounding.refuse_without_rounding(f"--quantize {self.type}")
        if self.adapter_only:
            self.rounding.refuse_without_rounding("--adapter-only")
        if self.format == "ollama" and self.adapter_only:
            raise ExportError("--adapter-only is for --format gguf: an Ollama model is exported whole.")

    def _refuse_max_kl(self, bound: float) -> None:
        if not 0 < bound < float("inf"):
            raise ExportError(f"--max-kl is {bound}; expected a number of nats above 0.")
        if self.check != "full":
            raise ExportError(
                f"--max-kl bounds what the export predicts, and --verify {self.check} doesn't run it: leave "
                "one out."
            )
        if self.format not in FOLDERS:
            refuse_without(WHEEL, "--max-kl, which bounds what llama.cpp predicts,")


def _refuse_unknown(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ExportError(f"{option} is {value!r}; expected one of {', '.join(known)}.")
