"""Which command a form of the board is: the one place where its fields become words."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from finetune.board.workspace import NAME, Workspace
from finetune.engines.registry import of_several
from finetune.errors import FinetuneError
from finetune.recipe.lock import read_lock
from finetune.runs.further import repeated_options

AUDIT_PAGE = "audit.html"
EXPORT_FORMATS = ("gguf", "ollama", "vllm", "compressed", "nf4")
"""Those of finetune.exporting, which loads torch."""


@dataclass(frozen=True)
class Field:
    """A field of a form."""

    name: str
    label: str
    kind: str = "text"
    """text, number, select or checkbox."""
    hint: str = ""
    choices: tuple[str, ...] = ()
    """Of a select; "" is for what the command takes by itself."""


@dataclass(frozen=True)
class Values:
    """What a form's fields hold."""

    workspace: Workspace
    about: str
    """A recipe's path, or a run's name."""
    given: Mapping[str, str]

    def text(self, name: str) -> str:
        """A field's text; empty where it has none. Raises FinetuneError for one that no command can have."""
        text = self.given.get(name, "").strip()
        if "\0" in text:
            raise FinetuneError(f"{name} holds a null character, which no command can have: take it out.")
        return text

    def option(self, name: str, option: str) -> list[str]:
        """An option with the field's value, where it has one."""
        return [option, self.text(name)] if self.text(name) else []

    def number(self, name: str, option: str) -> list[str]:
        """An option with a whole number. Raises FinetuneError for anything else."""
        text = self.text(name)
        if text and not (text.isascii() and text.isdigit()):
            raise FinetuneError(f"{option} got {text!r}; expected a whole number.")
        return [option, text] if text else []

    @property
    def overrides(self) -> list[str]:
        """Values that are laid over the recipe. Raises FinetuneError for what is none."""
        try:
            words = shlex.split(self.text("overrides"))
        except ValueError:
            raise FinetuneError("a quotation mark in the overrides is not closed.") from None
        for word in words:
            if "=" not in word or word.startswith("-"):
                raise FinetuneError(
                    f"{word!r} is no override: expected KEY=VALUE, such as train.learning_rate=1e-4."
                )
        return words

    @property
    def recipe(self) -> str:
        """The recipe, as a word."""
        self.workspace.recipe_path(self.about)
        return word_of(self.about)

    @property
    def run(self) -> str:
        """The run's folder, as a word."""
        return word_of(self.workspace.shown(self.workspace.run(self.about).path))

    def path(self, name: str) -> str:
        """A path that a field names, as a word. Raises FinetuneError where it is empty."""
        if not self.text(name):
            raise FinetuneError("name the folder or the file to write.")
        return word_of(self.text(name))


@dataclass(frozen=True)
class Action:
    """A command that the board offers."""

    title: str
    hint: str
    fields: tuple[Field, ...]
    words: Callable[[Values], list[str]]
    page: str = ""
    """A word that stands for a page which the command writes, to be shown with it."""


def word_of(path: str) -> str:
    """A path that no command takes for an option, or for a home folder."""
    return f"./{path}" if path.startswith(("-", "~")) else path


def _check(values: Values) -> list[str]:
    return ["check", values.recipe, *values.overrides, "--deep"]


def _data(values: Values) -> list[str]:
    shown = values.number("rows", "--rows") + values.number("preview", "--preview")
    allowed = values.option("allow_code", "--allow-code")
    return ["data", values.recipe, *values.overrides, *shown, *allowed, "--html", AUDIT_PAGE]


def _plan(values: Values) -> list[str]:
    cpu = ["--cpu"] if values.text("cpu") else []
    asked = values.number("gpus", "--gpus") + values.option("gpu_memory", "--gpu-memory")
    return ["plan", values.recipe, *values.overrides, *asked, *values.option("launch", "--launch"), *cpu]


def _train(values: Values) -> list[str]:
    name = values.text("run")
    if not NAME.fullmatch(name):
        raise FinetuneError(
            f"the run's name is {name!r}; expected letters, digits, dots, - and _, such as orders-001."
        )
    if values.workspace.run(name).path.exists():
        raise FinetuneError(
            f"the run {name} is there already (from another tab?): look at it under Runs, or take another "
            "name."
        )
    folder = word_of(values.workspace.shown(values.workspace.runs / name))
    launch = values.option("launch", "--launch") + values.number("processes", "--processes")
    allowed = values.option("allow_code", "--allow-code")
    return ["train", values.recipe, *values.overrides, "--run-folder", folder, *launch, *allowed]


def _resume(values: Values) -> list[str]:
    lock = read_lock(values.workspace.run(values.about).lock_path)
    return ["train", "--resume", values.run, *repeated_options(lock.command)]


def _merge(values: Values) -> list[str]:
    return ["merge", values.run, "--output", values.path("output"), *values.option("dtype", "--dtype")]


def _export(values: Values) -> list[str]:
    form = values.option("format", "--format") + values.option("quantize", "--quantize")
    return ["export", values.run, *form, "--output", values.path("output")]


def _evaluate(values: Values) -> list[str]:
    return ["evaluate", values.run, *(["--compare", "base"] if values.text("base") else [])]


def _serve(values: Values) -> list[str]:
    folder = values.workspace.run(values.about).path
    merged = [f"merged={values.workspace.shown(folder / 'merged')}"] if (folder / "merged").is_dir() else []
    tuned = f"tuned={values.workspace.shown(folder)}"
    return ["serve", tuned, *merged, "--with-base", "--port", "0"]


def _report(values: Values) -> list[str]:
    return ["report", values.run, "--html", values.path("output")]


OVERRIDES = Field("overrides", "Overrides", hint="KEY=VALUE, with blanks between: train.learning_rate=1e-4")
ALLOW_CODE = Field("allow_code", "Allow code", hint="the SHA-256 of the file of format python")
LAUNCH = Field("launch", "Sharding", "select", choices=("", *(engine.name for engine in of_several())))
RECIPE_ACTIONS: dict[str, Action] = {
    "data": Action(
        "Look at the data",
        "What becomes of each row, and what is learned of it, in colour.",
        (
            OVERRIDES,
            Field("rows", "Rows", "number", "the first of each source; all when empty"),
            Field("preview", "Preview", "number", "how many documents to show"),
            ALLOW_CODE,
        ),
        _data,
        page=AUDIT_PAGE,
    ),
    "plan": Action(
        "Plan",
        "Memory for every way of sharding, steps, time and disk.",
        (
            OVERRIDES,
            Field("gpus", "GPUs", "number", "1 when empty"),
            Field("gpu_memory", "Memory of one", hint="80GiB, 24GB"),
            LAUNCH,
            Field("cpu", "On the CPU", "checkbox"),
        ),
        _plan,
    ),
    "check": Action("Check deeply", "Also what needs the model or the data; slower.", (OVERRIDES,), _check),
    "train": Action(
        "Train",
        "A run of its own, which goes on when this page, or the board, is closed.",
        (
            Field("run", "Run"),
            OVERRIDES,
            LAUNCH,
            Field("processes", "Processes", "number", "with a sharding"),
            ALLOW_CODE,
        ),
        _train,
    ),
}
RUN_ACTIONS: dict[str, Action] = {
    "resume": Action("Resume", "Continue from the last checkpoint, by the run's own recipe.", (), _resume),
    "serve": Action(
        "Chat",
        "The base, the tuned model and the merged one, side by side; a server of this machine alone.",
        (),
        _serve,
    ),
    "merge": Action(
        "Merge",
        "Full weights, checked against base + adapter.",
        (
            Field("output", "Folder"),
            Field("dtype", "Type", "select", choices=("", "float32", "bfloat16", "float16")),
        ),
        _merge,
    ),
    "export": Action(
        "Export",
        "A file that other programs run, checked there.",
        (
            Field("format", "Format", "select", choices=EXPORT_FORMATS),
            Field("quantize", "Type", hint="q8_0, q4_k_m; of compressed fp8, int8, int4"),
            Field("output", "Folder"),
        ),
        _export,
    ),
    "evaluate": Action(
        "Evaluate",
        "Metrics on the held-out rows, with intervals.",
        (Field("base", "Beside the base", "checkbox"),),
        _evaluate,
    ),
    "report": Action(
        "Save the report", "This page's figures as one file.", (Field("output", "File"),), _report
    ),
}
ACTIONS = RECIPE_ACTIONS | RUN_ACTIONS


def defaults(workspace: Workspace, verb: str, about: str) -> dict[str, str]:
    """What an action's fields hold at first."""
    stem = about.rpartition("/")[2].rpartition(".")[0]
    run = workspace.runs / about
    merged, number = workspace.shown(run / "merged"), 2
    while verb == "merge" and (workspace.folder / merged).exists():
        merged, number = workspace.shown(run.with_name(f"{about}-merged-{number}")), number + 1
    return {
        "data": {"rows": "", "preview": "5"},
        "train": {"run": workspace.free_run(stem)} if verb == "train" else {},
        "merge": {"output": merged},
        "export": {"format": "gguf", "quantize": "q8_0", "output": f"exports/{about}-gguf"},
        "evaluate": {"base": "on"},
        "report": {"output": f"{about}.html"},
    }.get(verb, {})


def words_of(workspace: Workspace, verb: str, about: str, given: Mapping[str, str]) -> list[str]:
    """The command that a form is. Raises FinetuneError for an action or a value that can't be."""
    action = ACTIONS.get(verb)
    if action is None:
        raise FinetuneError(f"the board has no action {verb!r}.")
    return action.words(Values(workspace, about, given))
