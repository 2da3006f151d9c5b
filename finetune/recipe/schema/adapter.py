"""The adapter section: what is trained."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import PATH, Section
from finetune.models.architectures.base import VOCABULARY, last_part

Module = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]
LAST_LAYERS = r"^last [1-9][0-9]{0,3}$"
INITS = r"^(default|gaussian|orthogonal|pissa|pissa_niter_[1-9][0-9]?|olora|loftq|eva|corda|lora_ga)$"


class AdapterSection(Section):
    """What is trained: a LoRA adapter (Hu et al. 2021, arXiv:2106.09685), QLoRA (Dettmers et al. 2023,
    arXiv:2305.14314: LoRA on a quantised base), another adapter that peft computes, or all weights."""

    method: Literal["lora", "qlora", "full", "miss", "oft", "vera", "loha"] = "lora"
    """lora, qlora (lora on a base that is quantised while it loads), or full; by peft's own layers miss (Kang
    and Yin 2024, arXiv:2409.15371), oft (Qiu et al. 2023, arXiv:2306.07280), vera (Kopiczko et al. 2023,
    arXiv:2310.11454) and loha (Hyeon-Woo et al. 2021, arXiv:2108.06098), which aren't fused."""

    quantization: Literal["nf4", "int8"] = "nf4"
    """method qlora: the base's linear layers in 4-bit NF4, or in int8 with a scale per row (LLM.int8,
    Dettmers et al. 2022, arXiv:2208.07339). Both compute with the dequantised weights, in train.precision."""

    double_quantization: bool = True
    """NF4: its scales are quantised once more, to 8 bits."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """The rank of the adapter's update."""

    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with use_rslora)."""

    block_size: Annotated[int, Field(ge=2, le=4096)] = 32
    """method oft: a layer's inputs are rotated in blocks of so many, which must divide them."""

    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = (
        "all-linear"
    )
    """Names of modules that get an adapter (q_proj, ...), or all linear layers but the head. Each must match
    one."""

    exclude_modules: Annotated[tuple[Module, ...], Field(strict=False)] = ()
    """Of target_modules, those that get no adapter (v_proj, layers.0.mlp.up_proj). Each must match one."""

    rank_pattern: dict[Module, Annotated[int, Field(ge=1, le=4096)]] = Field(default={})
    """Modules, named as in exclude_modules, whose update has another rank. Each must match one that gets an
    adapter, and none may match two names."""

    alpha_pattern: dict[Module, Annotated[float, Field(gt=0)]] = Field(default={})
    """The same for alpha; a module's update is scaled by its own alpha and rank."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The probability that an input of the adapter is dropped, in training."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)."""

    use_dora: bool = False
    """Train magnitude and direction apart (DoRA, Liu et al. 2024, arXiv:2402.09353)."""

    layers: Annotated[str, Field(pattern=LAST_LAYERS)] | (
        Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, strict=False)] | None
    ) = None
    """The decoder layers that get an adapter: last N, or their numbers from 0; all of them when absent."""

    init: Annotated[str, Field(pattern=INITS)] = "default"
    """How A and B start. default, gaussian, orthogonal: with an update of zero. pissa, pissa_niter_N (PiSSA,
    Meng et al. 2024, arXiv:2404.02948, by an SVD or a fast one of N iterations) and olora (Büyükakyüz 2024,
    arXiv:2406.01775): at a part of the base, which is subtracted again, so that the adapter that is saved is
    one of the base as it is, of twice the rank. loftq (Li et al. 2023, arXiv:2310.08659, one iteration): with
    qlora, at what quantisation took from the base. By the first training rows, as the seed orders them: eva
    (Paischer et al. 2024, arXiv:2410.07170), A at the directions in which a layer's inputs vary most; corda
    (Yang et al. 2024, arXiv:2406.05223), like pissa at the part of the base that the rows' inputs use most;
    lora_ga (Wang et al. 2024, arXiv:2407.05000), where the first step goes as full fine-tuning's would,
    which is subtracted again as with pissa."""

    modules_to_save: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Modules that are trained in full and saved with the adapter (lm_head, embed_tokens)."""

    continue_from: Annotated[str | None, PATH] = None
    """An adapter to start from: a folder, a run or a hub id. Its rank, alpha and target_modules must
    equal the recipe's."""

    @property
    def by_peft(self) -> bool:
        """Whether it is an adapter that peft's own layers compute."""
        return self.method in PEFT_KEYS

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks that modules may have."""
        return self.rank, *self.rank_pattern.values()

    @property
    def base_quantization(self) -> str | None:
        """How the base is quantised while it loads: nf4, nf4-double or int8; None where it isn't."""
        if self.method != "qlora":
            return None
        return "nf4-double" if self.quantization == "nf4" and self.double_quantization else self.quantization

    @property
    def starts_at_base(self) -> bool:
        """Whether B A doesn't start at zero, and its start is taken out of the base by a frozen half beside
        it: PiSSA, OLoRA, CorDA and LoRA-GA."""
        return self.init.startswith("pissa") or self.init in ("olora", "corda", "lora_ga")

    @property
    def reads_rows(self) -> bool:
        """Whether where it starts is computed of training rows."""
        return self.init in ("eva", "corda", "lora_ga")

    @property
    def saved_rank(self) -> int:
        """The rank of the adapter that is saved."""
        return 2 * self.rank if self.starts_at_base else self.rank

    @property
    def most_sharing(self) -> int:
        """Over how many processes at most a quantised base's layers are cut up one by one as they are read:
        each needs a share of each of the adapter's matrices. 0 where the adapter's start needs the layers'
        own weights."""
        whole = {last_part(name) for name in self.modules_to_save} - VOCABULARY
        starts = self.use_dora or self.init == "loftq" or whole
        return 0 if self.method != "qlora" or starts else min(self.saved_ranks)

    @property
    def saved_ranks(self) -> tuple[int, ...]:
        """All ranks that its modules may have."""
        return self.saved_rank, *self.rank_pattern.values()

    @property
    def saved_alpha(self) -> float:
        """Its alpha, with which the update is scaled as the recipe's rank and alpha say."""
        if not self.starts_at_base:
            return self.alpha
        return self.alpha * (math.sqrt(2) if self.use_rslora else 2)


PEFT_KEYS: Mapping[str, frozenset[str]] = {
    "miss": frozenset({"rank", "dropout", "exclude_modules"}),
    "oft": frozenset({"block_size", "exclude_modules"}),
    "vera": frozenset({"rank", "dropout"}),
    "loha": frozenset({"rank", "alpha", "rank_pattern", "alpha_pattern", "exclude_modules"}),
}
"""The keys that methods take whose layers are peft's own, beside those of EVERY_ADAPTER."""
EVERY_ADAPTER = frozenset({"method", "target_modules", "layers", "continue_from"})

LORA_ONLY = tuple(name for name in AdapterSection.model_fields if name != "method")
"""The keys that method full has no use for."""
