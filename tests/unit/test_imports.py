"""The arrows of the house: who may import whom, and what stays light to import."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.imports import HEAVY, loaded_after, loaded_by

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = frozenset({
    "cli", "conversion", "recipe", "engines", "models", "data", "generation", "training", "engines.launch",
    "evaluation", "merging", "runs", "planning", "quickstart", "scoring", "self_test", "objectives", "exporters", "exporting",
    "machine", "pruning", "hub", "reporting", "serving", "sweeping", "data_prep", "clusters", "board",
})  # fmt: skip

# Parts of data_prep that need the standard library only.
DISK = frozenset({"data_prep.disk", "data_prep.secrets", "data_prep.temporary", "data_prep.text"})

EVERYBODYS = ("errors", "environment", "extras", "signals")

# Room -> the rooms that it may import; anyone may import its own and those of everybody. Imports inside
# functions count too.
ARROWS: dict[str, frozenset[str]] = {
    "cli": EVERYTHING | {"api", "loaded_model", "run"},
    "api": EVERYTHING - {"cli"} | {"adapters", "loaded_model", "run"},
    "adapters": frozenset({"api", "evaluation", "merging", "run"}),
    "run": frozenset({"api", "evaluation", "loaded_model", "merging", "recipe", "runs", "training"}),
    "loaded_model": frozenset({"evaluation", "generation", "runs", "recipe", "data_prep"}),
    "quickstart": EVERYTHING,
    "self_test": EVERYTHING,
    "machine": frozenset({"engines", "engines.launch", "models", "runs"}),
    "__main__": frozenset({"cli"}),
    "manual": frozenset({"data_prep", "engines", "models.architectures", "scoring"}),
    "errors": frozenset({"data_prep.errors", "data_prep.text"}),
    "environment": frozenset(),
    "extras": frozenset(),
    "signals": frozenset(),
    "recipe": DISK
    | {
        "data_prep.config",
        "data_prep.files",
        "data_prep.formats",
        "models.architectures",
        "objectives",
        "scoring",
    },
    "conversion": DISK | {"recipe", "objectives", "data_prep.config"},
    "scoring": frozenset({"data_prep", "recipe.schema"}),
    "objectives": frozenset(
        {"data_prep", "recipe.given", "recipe.schema"}
        | {f"models.{name}" for name in ("batch", "loss", "classify", "distillation", "policy", "preference")}
    ),
    "models": DISK | {"engines", "recipe", "data_prep"},
    "runs": DISK | {"recipe", "models", "data_prep.config"},
    "data": frozenset({"models", "objectives", "recipe", "data_prep"}),
    "generation": frozenset({"engines", "models", "data", "recipe", "data_prep"}),
    "evaluation": frozenset({"models", "objectives", "data", "generation", "runs", "scoring", "recipe"})
    | {"data_prep"},
    "planning": frozenset({"recipe", "engines", "models", "data", "data_prep"}),
    "engines": frozenset(
        {
            "engines.launch.allocator",
            "models.architectures",
            "models.device",
            "recipe.schema",
            "data_prep.text",
        }
    ),
    "clusters": frozenset({"engines", "engines.launch", "models.sizes", "planning", "recipe", "runs"}),
    "engines.launch": DISK | {"engines", "recipe", "runs", "models.device"},
    "training": frozenset({"engines", "engines.launch", "models", "objectives", "data", "generation"})
    | {"evaluation", "hub", "planning", "runs", "scoring", "recipe", "data_prep"},
    "reporting": frozenset({"data_prep", "recipe", "runs", "scoring"}),
    "board": frozenset(
        {"data_prep", "engines", "models", "recipe", "reporting", "runs", "serving.listening"}
    ),
    "exporters": frozenset({"models", "data_prep"}),
    "exporting": frozenset(
        {"data", "data_prep", "exporters", "generation", "merging", "models", "recipe", "runs"}
    ),
    "merging": frozenset(
        {"exporters", "models", "objectives", "data", "generation", "runs", "recipe", "data_prep"}
    ),
    "hub": frozenset({"models", "recipe", "runs", "data_prep", "merging.output"}),
    "pruning": frozenset({"data", "data_prep", "exporters", "merging", "models", "recipe"}),
    "serving": frozenset({"data_prep", "generation", "models", "recipe", "runs"}),
    "sweeping": frozenset({"data", "data_prep", "evaluation", "models", "recipe", "runs", "scoring"})
    | {"training"},
    "data_prep": frozenset(),
}
ROOMS_WITHIN = ("engines.launch",)
"""Rooms that lie in another one's folder, with a line of their own."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, relative imports resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = list(package[: len(package) - node.level + 1]) if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room_of(name: str) -> str | None:
    """The room that a dotted name lies in, None for other people's packages and for finetune itself."""
    parts = name.split(".")
    if parts[0] == "data_prep":
        return "data_prep"
    within = next((room for room in ROOMS_WITHIN if f"{name}.".startswith(f"finetune.{room}.")), None)
    if within is not None:
        return within
    return (
        parts[1]
        if parts[0] == "finetune" and len(parts) > 1 and not parts[1].startswith("__version")
        else None
    )


def files() -> list[Path]:
    return sorted(path for package in ("finetune", "data_prep") for path in (ROOT / package).rglob("*.py"))


def test_there_is_something_to_check() -> None:
    """Both packages are found, and every room of finetune has its line in the table."""
    assert len(files()) > 20
    rooms = {room_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in files()}
    assert rooms - {None, "__init__"} <= set(ARROWS)


def test_imports_follow_the_arrows() -> None:
    """No file imports from a room that the table doesn't give it, not even inside a function."""
    wrong = []
    for path in files():
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for line, name in imports_of(path):
            target = room_of(name)
            if target is None or target in (room, *EVERYBODYS) or room in (None, "__init__"):
                continue
            allowed = ARROWS.get(str(room), frozenset())
            whole = f"{name}.".removeprefix("finetune.")
            if not any(f"{way}.".startswith(f"{target}.") and whole.startswith(f"{way}.") for way in allowed):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


OURS = ("finetune", "data_prep", "tests", "benchmarks")


@cache
def names_in(path: Path) -> set[str]:
    """What a module defines or imports, anywhere in it."""
    nodes = list(ast.walk(parsed(path)))
    bound = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    bound |= {
        (alias.asname or alias.name).partition(".")[0]
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    bound |= {
        node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return bound | {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def exists(name: str) -> bool:
    """Whether a dotted name of ours is a module, or is in one. Where a module has a __getattr__, that answers."""
    module, _, member = name.rpartition(".")
    folder = ROOT.joinpath(*name.split("."))
    if folder.is_dir() or folder.with_suffix(".py").is_file():
        return True
    home = ROOT.joinpath(*module.split("."))
    path = home / "__init__.py" if home.is_dir() else home.with_suffix(".py")
    return path.is_file() and bool({member, "__getattr__"} & names_in(path))


def test_what_is_imported_exists() -> None:
    """In tests, benchmarks and examples too, which no type checker reads."""
    everything = [
        path
        for folder in ("tests", "benchmarks", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    assert not [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in everything
        for line, name in imports_of(path)
        if name.partition(".")[0] in OURS and not exists(name)
    ]


LIGHT = [
    "data_prep.config", "data_prep", "finetune", "finetune.recipe.lock", "finetune.recipe.load",
    "finetune.engines.registry", "finetune.engines.base", "finetune.engines.single", "finetune.engines.ddp",
    "finetune.engines.deepspeed", "finetune.engines.fsdp2", "finetune.engines.tables", "finetune.engines.launch.start",
    "finetune.models.architectures", "finetune.scoring.metrics", "finetune.planning.plan", "finetune.conversion",
    "finetune.manual", "finetune.reporting.page", "finetune.board.server", "finetune.api", "finetune.cli.app",
]  # fmt: skip


def test_a_light_module_loads_nothing_heavy() -> None:
    """Importing it loads no torch, transformers, datasets, peft or accelerate. One process imports them all:
    what the last has not loaded, none has."""
    loaded = loaded_after(LIGHT, HEAVY)
    assert {module: heavy for module, heavy in loaded.items() if heavy} == {}


def test_the_command_line_loads_only_what_a_verb_needs() -> None:
    """The table of verbs needs neither pydantic nor YAML; listing them all in the help loads nothing
    heavy."""
    assert loaded_by("import finetune.cli.app", (*HEAVY, "pydantic", "ruamel", "rich")) == []
    help_page = "import sys\nsys.argv = ['finetune', '--help']\nfrom finetune.cli.app import run\nrun()"
    assert loaded_by(help_page, (*HEAVY, "pydantic", "ruamel", "rich")) == []


def test_check_loads_no_torch() -> None:
    """`finetune check` runs to its end without torch."""
    check = (
        "import sys\nsys.argv = ['finetune', 'check', 'quickstart']\nfrom finetune.cli.app import "
        "run\nassert run() == 0"
    )
    assert loaded_by(check, (*HEAVY, "numpy")) == []


def test_few_places_ask_whether_there_is_a_classification_head() -> None:
    """What differs is asked of an objective, or of a merge's head."""
    asking = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        # These two are about attention heads, and headers.
        if path.name not in ("shapes.py", "config_file.py")
        and re.search(r"if head\b|head is (not )?None", line)
    ]
    assert len(asking) <= 10, asking


def test_no_class_has_another_s_name() -> None:
    """A search for a class finds one."""
    found: dict[str, list[str]] = {}
    for path in files():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_the_architecture_page_shows_the_table() -> None:
    """Line by line, as it is enforced here."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    for room, allowed in ARROWS.items():
        assert f"| `{room}` | {', '.join(f'`{name}`' for name in sorted(allowed)) or 'nothing'} |\n" in page


def test_no_test_module_imports_another() -> None:
    """What tests share is in tests/support, or in a module beside them that is none; fixtures come from a
    conftest alone."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, name in imports_of(path)
        if name.startswith("tests.")
        and any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    ]
    assert not wrong
