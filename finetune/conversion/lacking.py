"""What becomes of values for which the toolkit has no knob."""

from collections.abc import Callable

from finetune.conversion.draft import Draft
from finetune.conversion.given import GivenKey, name_list
from finetune.recipe.aliases import Alias

How = Callable[[GivenKey, Alias, Draft], None]
"""What is done with a key."""


def lacking(*, changes: bool, off: str = "off there; the toolkit has none", alone: object = None) -> How:
    """For what the toolkit lacks: carried where it is off, or where its value is `alone`, which asks for
    nothing either."""

    def lack(entry: GivenKey, alias: Alias, draft: Draft) -> None:
        if entry.off or entry.value == alone or _is_default(entry, alias):
            draft.carried(entry, "", off)
        elif _is_switched_off(entry, draft):
            draft.carried(entry, "", "its section is off there")
        elif alias.beside and not draft.given.on(alias.beside):
            draft.carried(entry, "", f"read with {' or '.join(alias.beside.split())} alone")
        else:
            draft.drop(entry, alias.note, changes=changes)

    return lack


def _is_switched_off(entry: GivenKey, draft: Draft) -> bool:
    """Whether the section of a key says `enabled: false`."""
    switch = draft.given.get(f"{entry.key.rpartition('.')[0]}.enabled")
    return switch is not None and switch.off


def _is_default(entry: GivenKey, alias: Alias) -> bool:
    """Whether the value is what the tool has where nobody asks."""
    return alias.default is not None and (type(entry.value), entry.value) == (
        type(alias.default),
        alias.default,
    )


def mixed(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """How several data sets are mixed; of one there is nothing to mix."""
    several = any(path.startswith("data.train.1.") for path in draft.values)
    if entry.off or entry.value == "concat" or not several:
        draft.carried(entry, "data.train", "all rows of each")
    else:
        draft.drop(entry, alias.note)


def embedding_adapter(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """LoRA+'s rate of an adapter on the embedding; embeddings that are trained whole have the base's."""
    targets = draft.value("adapter.target_modules", [])
    if not entry.off and draft.given.on("loraplus_lr_ratio") and "embed_tokens" in targets:
        draft.drop(entry, alias.note)
    else:
        draft.carried(entry, "", "read for an adapter on embed_tokens alone")


def plugins(entry: GivenKey, alias: Alias, draft: Draft) -> None:
    """Plug-ins of which kernels alone have a counterpart."""
    known = ("liger", "cut_cross_entropy", "kernels", "kd.")
    unknown = (
        [name for name in name_list(entry) if not any(word in name.lower() for word in known)]
        if not entry.off
        else []
    )
    if unknown:
        draft.drop(entry, f"{', '.join(unknown)}: {alias.note}")
    else:
        draft.otherwise(entry, "they are kernels, and the toolkit chooses its own")
