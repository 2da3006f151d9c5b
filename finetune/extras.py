"""Packages that only a part of the toolkit needs, and the extra that installs each."""

import importlib.util

from finetune.errors import FinetuneError

DISTRIBUTION = "llama-finetune"
EXTRAS: dict[str, dict[str, str]] = {
    "metrics": {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"},
    "plots": {"plotext": "plotext", "matplotlib": "matplotlib"},
    "gguf": {"gguf": "gguf", "xllamacpp": "xllamacpp"},
    "compressed": {"compressed_tensors": "compressed-tensors"},
    "benchmarks": {"lm_eval": "lm-eval"},
    "serve": {"llguidance": "llguidance"},
    "rewards": {"jsonschema": "jsonschema"},
    "sweep": {"optuna": "optuna", "cmaes": "cmaes"},
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "SQLAlchemy", "alembic": "alembic"},
    # Not "opentelemetry" itself, which MLflow brings too, without what sends.
    "opentelemetry": {"opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http"},
    "optimizers": {"schedulefree": "schedulefree"},
}
"""The extras of pyproject.toml: for each the modules that are imported, and the packages that hold them."""


def is_installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it is in
        return False


def refuse_without(module: str, what: str) -> None:
    """Raises FinetuneError where a module of EXTRAS that `what` needs is not installed."""
    if is_installed(module):
        return
    extra, package = next(
        (extra, packages[module]) for extra, packages in EXTRAS.items() if module in packages
    )
    raise FinetuneError(
        f'{what} needs {package}, which is not installed: pip install "{DISTRIBUTION}[{extra}]".'
    )
