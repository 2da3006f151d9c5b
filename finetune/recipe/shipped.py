"""The recipes that come with the package."""

from pathlib import Path


def recipes_folder() -> Path:
    """The folder with the shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe by its name: its path below the folder, without the suffix ("llama3/3.1_8b_lora")."""
    folder = recipes_folder()
    return {path.relative_to(folder).as_posix().removesuffix(".yaml"): path for path in sorted(folder.rglob("*.yaml"))}
