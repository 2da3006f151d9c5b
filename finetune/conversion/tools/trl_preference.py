"""TRL's trainers that learn from preferences: which one a file is for, and what it asks of it."""

from finetune.conversion.draft import Draft
from finetune.conversion.given import Given, GivenKey, name_list, number, truth
from finetune.conversion.judged import KTO, REWARD, kto, reward
from finetune.conversion.preference import CPO, DPO, ORPO, asked, cpo, dpo, orpo, refused, without_dropout
from finetune.conversion.shell import VERB

VERBS = ("sft", "dpo", "orpo", "cpo", "kto", "reward")
SCRIPTS = {"reward_modeling": "reward"}
CPO_ONLY = ("cpo_alpha", "simpo_gamma")
GONE = ("rpo_alpha", "reference_free", "max_prompt_length", "force_use_ref_model", "label_pad_token_id")
"""Keys of DPOTrainer that TRL 0.29 doesn't have: their files are of an earlier one."""
PAIRED = (
    *GONE, "beta", "loss_type", "loss_weights", "ld_alpha", "f_divergence_type", "precompute_ref_log_probs",
    "precompute_ref_batch_size", "sync_ref_model", "use_weighting",
)  # fmt: skip
"""Keys that say that a file is none of SFTTrainer's."""
ELSEWHERE = {"num_generations": "grpo", "reward_funcs": "grpo", "reward_model_path": "ppo"}
"""Keys of trainers whose objectives aren't here."""


def trainer(given: Given) -> str:
    """Which of TRL's trainers a file is for: the command says it, or else its keys. Raises ConvertError for
    one whose objective isn't here."""
    verb = given.environment.get(VERB)
    verb = SCRIPTS.get(verb, verb) if verb is not None else None
    if verb is not None:
        if verb not in VERBS:
            raise refused(given, verb)
        return verb
    for key, name in ELSEWHERE.items():
        entry = given.get(key)
        if entry is not None:
            raise refused(entry, name)
    loss = given.get("loss_type")
    if "desirable_weight" in given or "undesirable_weight" in given or _is_kto(loss):
        return "kto"
    if "center_rewards_coefficient" in given:
        return "reward"
    if any(key in given for key in CPO_ONLY) or (loss is not None and loss.value in ("simpo", "alphapo")):
        return "cpo"
    if loss is not None and any(name in ("nll", "dft", "chunked_nll") for name in name_list(loss)):
        return "sft"
    return "dpo" if any(key in given for key in PAIRED) else "sft"


def _is_kto(loss: GivenKey | None) -> bool:
    return loss is not None and loss.value in ("kto", "apo_zero_unpaired")


def form_of(kind: str) -> str:
    """The format of the rows that a trainer reads."""
    return {"sft": "auto", "kto": "feedback"}.get(kind, "preference")


def preferences(given: Given, draft: Draft, kind: str, tool: str, prefix: str = "") -> None:
    """The objective of DPOTrainer, ORPOTrainer, CPOTrainer, KTOTrainer or RewardTrainer; `prefix` is what its
    keys are below."""
    before = any(f"{prefix}{key}" in given for key in GONE)
    assumed = kind == "dpo" and VERB not in given.environment and f"{prefix}loss_type" not in given
    defaults = {"dpo": DPO, "orpo": ORPO, "cpo": CPO, "kto": KTO, "reward": REWARD}[kind]
    said = asked(given, draft, defaults, {name: f"{prefix}{name}" for name in defaults})
    if kind == "dpo":
        dpo(draft, said, smooths=before)
    elif kind == "orpo":
        orpo(draft, said, None, learns_prompts=True)
    elif kind == "cpo":
        cpo(draft, said)
    else:
        (kto if kind == "kto" else reward)(draft, said, None)
    if assumed and not prefix and said["beta"].written:
        how = f'taken to be of DPO; a file of ORPO or CPO says the same: --from "{tool} orpo"'
        draft.otherwise(said["beta"], how, "objective.kind")
    switch = given.take(f"{prefix}disable_dropout")
    if switch is None or truth(switch):
        without_dropout(given, draft, "peft.lora_dropout" if prefix else "lora_dropout")
    draft.carried(switch, "adapter.dropout")
    divergence = given.take(f"{prefix}f_divergence_type")
    if divergence is not None and str(divergence.value).rpartition(".")[2].lower() != "reverse_kl":
        draft.drop(divergence, f"{divergence.value}: the divergence is the reverse KL, as in the paper")
    else:
        draft.carried(divergence, "objective.kind")
    _cut(draft, kind, before=before)
    limit = given.value(f"{prefix}max_length", given.value("model.model_max_length"))
    _prompts(draft, given.take(f"{prefix}max_prompt_length"), limit)


def _cut(draft: Draft, kind: str, *, before: bool) -> None:
    """What becomes of rows that are too long; `before`: the file is of TRL before 0.29."""
    if kind == "reward":
        draft.put("data.over_length", "drop", "TRL leaves out pairs that are longer than max_length")
    elif before:
        draft.put("data.over_length", "truncate_start", "TRL before 0.29 cuts the start of rows")
    else:
        draft.put("data.over_length", "truncate_end", "TRL cuts rows at max_length")


def _prompts(draft: Draft, entry: GivenKey | None, whole: object) -> None:
    """A limit of prompts' own, which matters where it is below that of rows."""
    if entry is None or entry.off or (isinstance(whole, int) and number(entry) >= whole):
        draft.carried(entry, "data.max_length_tokens", "no limit below that of rows")
    else:
        draft.drop(
            entry, f"prompts longer than {entry.value} tokens are cut there; here only rows have a limit"
        )
