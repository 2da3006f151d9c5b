"""One process, without a launcher."""

from finetune.engines.base import Engine, Guide, Method, Refusal


class Single(Engine):
    """A plain run, on one device."""

    several = False
    kinds = ("NO",)

    def refusal(self, method: Method, precision: str) -> Refusal | None:
        """Nothing: each method works in each precision that the device has."""
        return None


SINGLE = Single("single", guides=(Guide("cpu", "there is no GPU", "use several processes", "one process"),))
