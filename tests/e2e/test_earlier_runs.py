"""What a user of an earlier version has on disk goes on: tests/golden/runs_*.tar.gz, made by
tests/golden/make_runs.py."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.recipe.lock import read_lock
from tests.support.cli import Finetune

ARCHIVES = sorted((Path(__file__).parents[1] / "golden").glob("runs_*.tar.gz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def earlier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with base/, rows/, cache/ and runs/ as that version left them; the cache of prepared data is
    in use."""
    root = tmp_path / "earlier"
    with tarfile.open(request.param) as archive:
        archive.extractall(root, filter="data")
    for path in root.rglob("*"):
        content = path.read_bytes() if path.is_file() and "checkpoints" not in path.parts else b""
        if b"/ROOT/" in content:
            path.write_bytes(content.replace(b"/ROOT/", f"{root}/".encode()))
    monkeypatch.setenv("FINETUNE_CACHE", str(root / "cache"))
    return root


def test_there_are_earlier_runs() -> None:
    """The archives are found."""
    assert ARCHIVES


def test_an_interrupted_run_resumes_to_the_result_of_that_version(
    earlier: Path, finetune_here: Finetune
) -> None:
    """Killed after 8 of 12 steps by the version of then, it ends now with the adapter of the run that then
    went through.

    Its rows come out of the cache of then, and its lock still says by which rules it was started.
    """
    killed, whole = earlier / "runs" / "killed-001", earlier / "runs" / "whole-001"
    before = {path.name for path in (earlier / "cache" / "data").iterdir()}
    finetune_here("train", "--resume", str(killed))
    now, then = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (killed, whole))
    assert now.keys() == then.keys()
    for name, expected in then.items():
        assert torch.linalg.norm(now[name] - expected) <= 1e-6 * torch.linalg.norm(expected), name
    assert {path.name for path in (earlier / "cache" / "data").iterdir()} == before
    assert read_lock(killed / "recipe.lock.yaml").rules == read_lock(whole / "recipe.lock.yaml").rules
    summaries = [json.loads((run / "summary.json").read_text()) for run in (killed, whole)]
    assert summaries[0]["evaluation_loss"] == pytest.approx(summaries[1]["evaluation_loss"], rel=1e-5)


def test_a_finished_run_is_merged_verified_compared_and_evaluated(
    earlier: Path, finetune_here: Finetune
) -> None:
    """Every verb that takes a run takes one of then; a new merge holds the weights of the merge of then."""
    runs = earlier / "runs"
    whole, chat = str(runs / "whole-001"), str(runs / "chat-001")
    finetune_here("merge", whole, "--output", str(earlier / "again"), "--rounding", "nearest")
    merges = [
        load_file(folder / "model.safetensors")
        for folder in (earlier / "again", runs / "whole-001" / "merged")
    ]
    assert all(torch.equal(merges[0][name], merges[1][name]) for name in merges[0].keys() | merges[1].keys())
    finetune_here("verify", str(runs / "whole-001" / "merged"))
    assert "finished" in finetune_here("runs", "show", whole).stdout
    assert "rows/plain.jsonl" in finetune_here("runs", "diff", whole, chat).stdout
    listed = json.loads(finetune_here("runs", "list", str(runs), "--json").stdout)
    assert {run["name"] for run in listed if run["status"] == "finished"} == {"whole-001", "chat-001"}
    assert len(listed) == 3


def test_a_finished_run_reproduces_and_scores(earlier: Path, finetune_here: Finetune) -> None:
    """Its recipe, run again from the lock, gives its weights; its metrics are what was measured then."""
    run, whole = earlier / "runs" / "chat-001", earlier / "runs" / "whole-001"
    despite = [word for what in ("code", "versions") for word in ("--despite", what)]
    report = json.loads(finetune_here("runs", "reproduce", str(whole), *despite, "--json").stdout)
    assert max(report["weights_distance"], report["loss_distance"]) < 1e-5
    lock = read_lock(run / "recipe.lock.yaml")
    (earlier / "recipe.yaml").write_text(lock.recipe.model_dump_json(exclude_defaults=True))
    scores = json.loads(finetune_here("evaluate", str(run), str(earlier / "recipe.yaml"), "--json").stdout)
    then = json.loads((run / "summary.json").read_text())["metrics"]
    for name in ("loss", "exact_match"):
        assert scores["metrics"][name]["value"] == pytest.approx(then[name]["value"], rel=1e-5)
