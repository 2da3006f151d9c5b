"""The rewards of answers that are drawn: objective.rewards, a table of named ones."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_prep.config import PATH, Section

RewardKind = Literal[
    "exact_match", "squad_exact_match", "squad_f1", "rouge1", "rouge2", "rougeL", "chrf", "label", "number",
    "regex", "json_schema", "length", "pass", "run", "python",
]  # fmt: skip

OWN_KEYS: dict[str, tuple[str, ...]] = {
    "regex": ("pattern",),
    "json_schema": ("json_schema",),
    "length": ("least_tokens", "most_tokens", "margin_tokens"),
    "run": ("run",),
    "python": ("code",),
}
"""Keys that one kind alone reads; the first of each is needed, of length any."""

Tokens = Annotated[int, Field(ge=1)]


class RewardSection(Section):
    """What an answer is worth, by one measure."""

    kind: RewardKind
    """exact_match, squad_exact_match, squad_f1, rouge1, rouge2, rougeL, chrf: that metric of the answer
    alone, with its row's answer, divided by its best value. label: 1 where the answer begins with its row's
    label. number: 1 where the last number of the answer equals the last one of its row's. regex: 1 where a
    pattern is found in it. json_schema: 1 where it is JSON that fits. length: 0, and down to -1 outside
    bounds. pass: 1 where the row's tests pass, in the sandbox. run: the number of a reward model. python: a
    function of yours."""

    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """What it is multiplied by in the sum, which is what answers are compared by."""

    on_error: Literal["error", "zero"] = "error"
    """Where it raises, takes more than `seconds`, or isn't a finite number: error ends the run; zero counts
    the answer as 0, and logs how many those were."""

    seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    """pass, regex and python: how long one answer may take."""

    pattern: Annotated[str, Field(min_length=1)] | None = None
    """regex: a regular expression of Python's, looked for anywhere; a dot takes line ends too."""

    json_schema: dict[str, Any] | None = None
    """json_schema: a schema of JSON Schema, version 2020-12; nothing is fetched for it."""

    least_tokens: Tokens | None = None
    """length: shorter answers are punished."""

    most_tokens: Tokens | None = None
    """length: longer answers are punished."""

    margin_tokens: Tokens | None = None
    """length: the reward falls to -1 over so many tokens beyond a bound, as DAPO's (Yu et al. 2025,
    arXiv:2503.14476, equation 13); at once when absent."""

    run: Annotated[str | None, PATH] = None
    """run: a run of objective reward, or its model's folder, of the same chat template."""

    code: Annotated[str | None, PATH] = None
    """python: a file with a function reward(prompt, answer, references) that returns a number; it runs with
    --allow-code SHA256 on the command line."""

    @model_validator(mode="after")
    def _own_keys(self) -> "RewardSection":
        for kind, keys in OWN_KEYS.items():
            given = [key for key in keys if getattr(self, key) is not None]
            if kind != self.kind and given:
                raise ValueError(f"{given[0]} is read by kind {kind} alone, and this one is {self.kind}")
            if kind == self.kind == "length" and {*given} <= {"margin_tokens"}:
                raise ValueError("kind length needs least_tokens or most_tokens")
            if kind == self.kind and not given:
                raise ValueError(f"kind {kind} needs {keys[0]}")
        return self
