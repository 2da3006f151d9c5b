"""The recipes that come with the package."""

from pathlib import Path


def shipped_folder(name: str) -> Path:
    """A folder that travels with the package: inside it where it is installed, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def recipes_folder() -> Path:
    """The folder with the shipped recipes."""
    return shipped_folder("recipes")


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe by its name: its path below the folder, without the suffix
    ("llama3/3.1_8b_lora")."""
    folder = recipes_folder()
    return {
        path.relative_to(folder).as_posix().removesuffix(".yaml"): path
        for path in sorted(folder.rglob("*.yaml"))
    }
