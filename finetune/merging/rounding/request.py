"""What a merge is asked about its rounding, and what can't be honoured together. Loads no torch."""

from dataclasses import dataclass

from finetune.errors import MergeError
from finetune.recipe.schema import Recipe

ROUNDINGS = ("auto", "nearest", "stochastic", "calibrated")


@dataclass(frozen=True)
class RoundingRequest:
    """--rounding, --seed and --calibration; None for what was left out."""

    name: str | None = None
    seed: int | None = None
    calibration: Recipe | None = None

    @property
    def method(self) -> str:
        """The rounding to take."""
        return self.name or "auto"

    def refuse_contradictions(self, dtype: str | None) -> None:
        """Raises MergeError for a rounding that there isn't, and for options that it would ignore."""
        if self.method not in ROUNDINGS:
            raise MergeError(f"--rounding is {self.name!r}; expected one of {', '.join(ROUNDINGS)}.")
        if self.seed is not None and self.seed < 0:
            raise MergeError(f"--seed is {self.seed}; expected 0 or more.")
        if self.seed is not None and self.method == "nearest":
            raise MergeError(
                "--seed with --rounding nearest: it draws nothing. Leave --seed out, or take --rounding "
                "stochastic, calibrated or auto."
            )
        if self.calibration is not None and self.method in ("nearest", "stochastic"):
            raise MergeError(
                f"--calibration with --rounding {self.method}: it looks at no rows. Leave --calibration out, "
                "or take --rounding calibrated or auto."
            )
        if dtype == "float32":
            self.refuse_without_rounding("--dtype float32")

    def refuse_without_rounding(
        self, why: str, reason: str = "no weight is rounded to 16 bits, so there is nothing to choose"
    ) -> None:
        """Raises MergeError where something is asked of the rounding, and none counts."""
        asked = {
            f"--rounding {self.name}": self.name not in (None, "nearest"),
            "--seed": self.seed is not None,
            "--calibration": self.calibration is not None,
        }
        found = [option for option, is_there in asked.items() if is_there]
        if found:
            raise MergeError(f"{' and '.join(found)} with {why}: {reason}. Leave it out.")

    def refuse_beside_peft(self, reason: str) -> None:
        """Raises MergeError for what can't be honoured where peft itself merges."""
        if self.name in ("stochastic", "calibrated") or self.calibration is not None or self.seed is not None:
            raise MergeError(
                f"--rounding {self.method} can't be honoured: peft itself must merge this adapter "
                f"({reason}), and its result is rounded to the nearest. Take --rounding nearest, or --dtype "
                "float32."
            )
