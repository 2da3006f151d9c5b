"""Without the packages of an extra: one message that names it, before anything is trained."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from finetune.errors import FinetuneError
from finetune.extras import DISTRIBUTION, EXTRAS, is_installed
from finetune.runs.plot import draw, save_png
from finetune.scoring.metrics import known, metric_of

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
model: {base: owner/name}
data: {train: [{generated: orders}], evaluation: {fraction: 0.1}}
evaluate: {labels: [a, b], metrics: [loss, accuracy, METRIC]}
"""
HIDING = """
import importlib.machinery, sys
class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition('.')[0] in HIDDEN else super().find_spec(name, path, target)
HIDDEN = set(sys.argv.pop(1).split(','))
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Hiding
from finetune.cli.app import run
code = run()
assert not HIDDEN & set(sys.modules)
sys.exit(code)
"""


def without(modules: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line where some modules are not installed: nothing finds them."""
    command = [sys.executable, "-c", HIDING, modules, *arguments]
    return subprocess.run(
        command, cwd=cwd, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )


def test_the_extras_are_those_of_pyproject() -> None:
    """finetune/extras.py has the packages of each extra, and `all` is these extras."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        assert [Requirement(line).name for line in declared[extra]] == list(modules.values())
    assert Requirement(declared["all"][0]).extras == set(EXTRAS)


def test_a_module_that_is_asked_for_is_its_package_s_own() -> None:
    """None is there because of another package: `opentelemetry` is of MLflow too."""
    for modules in EXTRAS.values():
        for module, package in modules.items():
            if is_installed(module):
                path = module.replace(".", "/")
                held = {str(file) for file in files(package) or ()}
                assert held & {f"{path}.py", f"{path}/__init__.py"}, module


def test_a_module_of_a_package_that_is_absent_is_absent() -> None:
    assert not is_installed("opentelemetry.of_nobody.http")


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize("metric", ["bleu", "rougeL"])
def test_a_metric_s_package_is_asked_for_before_training(tmp_path: Path, verb: str, metric: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("METRIC", metric))
    done = without("sacrebleu,rouge_score", verb, "r.yaml", cwd=tmp_path)
    package = EXTRAS["metrics"][str(metric_of(metric).module)]
    assert done.stderr == (
        f"error: evaluate.metrics: {metric} needs {package}, which is not installed: pip install "
        f'"{DISTRIBUTION}[metrics]".\n'
    )
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [tmp_path / "r.yaml"])


def test_other_metrics_need_none_of_them(tmp_path: Path) -> None:
    """A recipe whose metrics are computed here is valid without the extra."""
    own = [
        "perplexity",
        "bits_per_byte",
        "general_loss",
        "exact_match",
        "squad_exact_match",
        "squad_f1",
        "likelihood_accuracy",
        "f1_macro",
        "matthews",
        "pass@1",
    ]
    assert [metric.module for metric in known(own)] == [None] * len(own)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("METRIC", ", ".join(own)))
    done = without("sacrebleu,rouge_score,nltk", "check", "r.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_gguf_base_needs_gguf(tmp_path: Path) -> None:
    """Said before a wheel with 100 MB is fetched."""
    done = without("gguf", "check", "quickstart", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == f'error: model.base: a GGUF file needs gguf, which is not installed: pip install "{DISTRIBUTION}[gguf]".\n'
    )


def test_an_optimizer_needs_its_package(tmp_path: Path) -> None:
    """Said by the command line, with the extra that has it."""
    (tmp_path / "r.yaml").write_text(
        "extends: smollm2/135m_lora\ntrain: {optimizer: schedule_free_adamw, schedule: constant}\n"
    )
    done = without("schedulefree", "train", "r.yaml", cwd=tmp_path)
    what = "train.optimizer schedule_free_adamw needs schedulefree"
    assert (
        done.stderr == f'error: {what}, which is not installed: pip install "{DISTRIBUTION}[optimizers]".\n'
    )
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [tmp_path / "r.yaml"])


@pytest.mark.parametrize(
    ("module", "sampler", "what"),
    [
        ("optuna", "tpe", "finetune sweep needs optuna"),
        ("cmaes", "cma-es", "sweep.sampler: cma-es needs cmaes"),
    ],
)
def test_a_sweep_needs_its_packages(tmp_path: Path, module: str, sampler: str, what: str) -> None:
    """Said before a folder is made."""
    rates = "train.learning_rate: {uniform: [0.1, 1]}, adapter.dropout: {uniform: [0, 0.5]}"
    text = (
        "extends: smollm2/135m_lora\nsweep: {space: {" + rates + "}, trials: 1, sampler: " + sampler + "}\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    done = without(module, "sweep", "r.yaml", cwd=tmp_path)
    assert done.stderr == f'error: {what}, which is not installed: pip install "{DISTRIBUTION}[sweep]".\n'
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [tmp_path / "r.yaml"])


def test_curves_need_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the terminal one package, for a file another."""
    monkeypatch.setitem(sys.modules, "plotext", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    asked = re.escape(f'which is not installed: pip install "{DISTRIBUTION}[plots]".')
    with pytest.raises(FinetuneError, match=f"a plot in the terminal needs plotext, {asked}"):
        draw({}, 80, 20, colours=False)
    with pytest.raises(FinetuneError, match=f"a PNG needs matplotlib, {asked}"):
        save_png({}, tmp_path / "curves.png")
