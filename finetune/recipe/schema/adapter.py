"""The adapter section: what is trained."""

from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import PATH, Section


class AdapterSection(Section):
    """What is trained: a LoRA adapter (Hu et al. 2021, arXiv:2106.09685), QLoRA (Dettmers et al. 2023,
    arXiv:2305.14314: LoRA on a quantised base), or all weights."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """lora, qlora (lora on a base that is quantised while it loads), or full."""

    quantization: Literal["nf4", "int8"] = "nf4"
    """method qlora: the base's linear layers in 4-bit NF4, or in int8 with a scale per row (LLM.int8,
    Dettmers et al. 2022, arXiv:2208.07339). Both compute with the dequantised weights, in train.precision."""

    double_quantization: bool = True
    """NF4: its scales are quantised once more, to 8 bits."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """The rank of the adapter's update."""

    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with use_rslora)."""

    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = (
        "all-linear"
    )
    """Names of modules that get an adapter (q_proj, ...), or all linear layers but the head. Each must match
    one."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The probability that an input of the adapter is dropped, in training."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)."""

    use_dora: bool = False
    """Train magnitude and direction apart (DoRA, Liu et al. 2024, arXiv:2402.09353)."""

    init: Literal["default", "gaussian", "orthogonal"] = "default"
    """How A and B start; the update is zero at the start with each."""

    modules_to_save: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Modules that are trained in full and saved with the adapter (lm_head, embed_tokens)."""

    continue_from: Annotated[str | None, PATH] = None
    """An adapter to start from: a folder, a run or a hub id. Its rank, alpha and target_modules must
    equal the recipe's."""

    @property
    def base_quantization(self) -> str | None:
        """How the base is quantised while it loads: nf4, nf4-double or int8; None where it isn't."""
        if self.method != "qlora":
            return None
        return "nf4-double" if self.quantization == "nf4" and self.double_quantization else self.quantization
