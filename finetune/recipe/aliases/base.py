"""One line of the table of aliases."""

from dataclasses import dataclass

ANY = "any"
"""Every tool that has the key means the same by it."""


@dataclass(frozen=True)
class Alias:
    """What other tools call a knob, and what to do with its value."""

    theirs: str
    """Their names, separated by blanks; dotted where one is only meant below a section, `section.*` for all
    below it, `name_*` for all that begin so."""

    ours: str
    """The dotted key of a recipe; empty where there is none."""

    how: str = "same"
    """What becomes of the value: the name of a function of finetune/conversion/values.py, or

    same    it is ours as it is
    chosen  nothing is to be set: the toolkit does this by itself, and the result is the same
    off     the toolkit lacks it: where it is off, that is the same; where it is on, the result changes
    spare   the toolkit lacks it, and the result doesn't change
    unread  a tool's own file has taken it, unless its training doesn't read it
    """

    note: str = ""
    """What a reader has to know: the unit, or why there is none."""

    tools: tuple[str, ...] = (ANY,)
    """The tools that mean this by the names."""

    beside: str = ""
    """Keys of which one has to be on, or else these are not read."""

    default: object = None
    """Their value where nobody asks for anything, if it isn't one that says off."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.theirs.split())

    def has(self, name: str) -> bool:
        """Whether a name, without its section, is one of theirs."""
        return any(
            name.startswith(other[:-1]) if other.endswith("_*") else name == other.rpartition(".")[2]
            for other in self.names
        )

    def said_of(self, key: str, section: str = "") -> str:
        """What a message says of the key where somebody wrote it in a section of a recipe."""
        if not self.ours:
            fate = "isn't needed" if self.how in ("chosen", "resume") else "has no counterpart here"
            return f"unknown key; {key} {fate}: {self.note}"
        within, _, name = self.ours.rpartition(".")
        note = f" ({self.note})" if self.note else ""
        if name == key:
            return f"unknown key here; {key} is {self.ours}{note}"
        return f"unknown key; {key} is {name if within == section else self.ours} here{note}"
