"""Fine-tune LLaMA-family models with LoRA: strict recipes, audited data, verified merges, reproducible runs.

    run = finetune.train("quickstart", {"train.epochs": 1})
    print(run.metrics["evaluation_loss"])
    run.merge("merged")
    print(finetune.load("merged").generate(["Two pizzas, please."]))

Importing it loads neither torch nor pydantic; what a function needs is loaded when it is first used. Messages
go to `logging.getLogger("finetune")`: `logging.basicConfig(level="INFO")` shows them. Errors are those of
`finetune.errors`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.api import (
        Chat,
        LogLikelihood,
        Model,
        Run,
        audit,
        benchmark,
        combine,
        convert,
        doctor,
        evaluate,
        export,
        extract,
        inspect,
        list_runs,
        load,
        load_recipe,
        merge,
        plan,
        plot,
        prune,
        push,
        report,
        resume,
        sample,
        selftest,
        serve,
        sweep,
        train,
        train_many,
        unmerge,
        verify,
    )

    __version__: str

__all__ = [
    "Chat", "LogLikelihood", "Model", "Run", "__version__", "audit", "benchmark", "combine", "convert",
    "doctor", "evaluate", "export", "extract", "inspect", "list_runs", "load", "load_recipe", "merge",
    "plan", "plot", "prune", "push", "report", "resume", "sample", "selftest", "serve", "sweep", "train",
    "train_many", "unmerge", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            found: Any = metadata.version("llama-finetune")
        except metadata.PackageNotFoundError:
            found = "0+unknown"  # a checkout that is not installed
    elif name in __all__:
        from finetune import api

        found = getattr(api, name)
    else:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
