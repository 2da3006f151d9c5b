"""What becomes of where an adapter starts, and of the layers that have one."""

from finetune.conversion.draft import Draft
from finetune.conversion.given import GivenKey, number, whole
from finetune.recipe.aliases import Alias

PISSA_ITERATIONS = 16
"""LLaMA-Factory's default of pissa_iter; -1 is the full decomposition."""


COMPUTED = ("pissa", "olora", "loftq", "eva", "corda", "lora_ga")
GO_WITH_DROPOUT = ("loftq", "eva")
"""Of these, what takes nothing out of the base: it goes with dropout, and with a quantised base."""


def init(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """peft's init_lora_weights."""
    value = str(entry.value).lower()
    if value in ("true", "default", "none"):
        draft.carried(entry, alias.ours, "the default there and here")
    elif value in ("gaussian", "orthogonal"):
        draft.carry(entry, alias.ours, value)
    elif value in COMPUTED or value.startswith("pissa_niter_"):
        draft.carry(entry, alias.ours, value)
        draft.note("init", entry)
    else:
        draft.drop(entry, f"init {entry.value} is not here")


def pissa(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """LLaMA-Factory's pissa_init with pissa_iter."""
    name = entry.key.rpartition(".")[2]
    if entry.off and name == "pissa_init":
        draft.carried(entry, alias.ours, "the default there and here")
        return
    draft.note(name, entry)
    draft.carried(entry, alias.ours)


def loftq(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """peft's loftq_config: 4 bits, one iteration."""
    name = entry.key.rpartition(".")[2]
    if entry.off:
        draft.carried(entry, alias.ours, "the default there and here")
    elif name == "loftq_bits" and whole(entry) != 4:
        draft.drop(entry, f"loftq_bits {entry.value}: a base is quantised to 4 bits")
    elif name == "loftq_iter" and whole(entry) != 1:
        draft.otherwise(entry, "one iteration", alias.ours, changes=True)
    else:
        draft.carried(entry, alias.ours)
        draft.note("loftq", entry)


def layers(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """How many of the last layers (mlx-lm's num_layers), or which (peft's layers_to_transform)."""
    counts = entry.key.rpartition(".")[2] in ("num_layers", "lora_layers")
    if entry.off or entry.value == [] or (counts and whole(entry) < 0):
        draft.carried(entry, alias.ours, "all layers")
    elif counts:
        draft.carry(entry, alias.ours, f"last {whole(entry)}")
    else:
        numbers = entry.value if isinstance(entry.value, list) else [whole(entry)]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise entry.refused(f"got {entry.value!r}, expected numbers of layers from 0")
        draft.carry(entry, alias.ours, numbers)


def embedding_rate(draft: Draft) -> None:
    """The rate of embeddings that are trained; where none is, there is nothing to say."""
    entry = draft.notes.pop("embedding_rate", None)
    if entry is None:
        return
    named = (str(name).rpartition(".")[2] for name in draft.value("adapter.modules_to_save", ()))
    whole = not {"embed_tokens", "lm_head"}.isdisjoint(named)
    if entry.off:
        draft.carried(entry, "train.embedding_learning_rate", "off there, off here")
    elif whole or draft.value("adapter.method") == "full" or draft.value("model.new_tokens"):
        draft.carry(entry, "train.embedding_learning_rate", number(entry))
    else:
        draft.carried(entry, "", "no embedding is trained")


def start(draft: Draft) -> None:
    """Put together how an adapter starts, once it is known how the base is held."""
    entry, iterations = draft.notes.pop("init", None), draft.notes.pop("pissa_iter", None)
    fast, quantised = draft.notes.pop("pissa_init", None), draft.notes.pop("loftq", None)
    if fast is not None:
        count = PISSA_ITERATIONS if iterations is None else whole(iterations)
        draft.put("adapter.init", "pissa" if count < 1 else f"pissa_niter_{count}", fast)
    if quantised is not None:
        draft.put("adapter.init", "loftq", quantised)
    entry = fast or quantised or entry
    if entry is None or draft.value("adapter.method") == "full":
        return
    name, on_quantised = draft.value("adapter.init"), draft.value("adapter.method") == "qlora"
    if name == "loftq" and not on_quantised:
        draft.put("adapter.method", "qlora", entry)
        draft.otherwise(entry, "the base is held in NF4; there its rounded weights are held in 16 bits")
    if name not in GO_WITH_DROPOUT and on_quantised:
        draft.remove("adapter.init")
        draft.drop(entry, f"{name} is for bases in 16 bits here: loftq is for quantised ones")
        return
    if name not in GO_WITH_DROPOUT and draft.value("adapter.dropout", 0):
        draft.remove("adapter.dropout")
        draft.otherwise(entry, f"without dropout, which {name} doesn't go with", "adapter.init", changes=True)
    if draft.value("adapter.use_dora"):
        draft.remove("adapter.init")
        draft.drop(entry, f"{name} doesn't go with DoRA here")
