"""What is wrong with a job before it is one: one message each, exit 2, nothing written."""

from pathlib import Path

import pytest

from tests.support.clusters import OF_CLUSTERS, Rendering

BASIC = ("train", "tiny.yaml", "--launch", "fsdp2", "--nodes", "4", "--on", "slurm")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--job", "partitoin=a"), "Did you mean partition?"),
        (("--job", "partition"), "expected KEY=VALUE"),
        (("--job", "gpus=1", "--job", "gpus=2"), "gpus is given twice"),
        (("--job", "gpus=many"), "gpus is 'many'"),
        (("--job", "time=soon"), "expected HOURS:MINUTES:SECONDS"),
        (("--job", "memory=lots"), "expected a number and a unit"),
        (("--job", "partition=a b"), "partition is 'a b'"),
        (("--job", "time=00:05:00"), "of it are kept for the last checkpoint"),
        (
            ("--job", "time=01:00:00", "--processes", "8", "--job", "gpus=4"),
            "are 2 on each: got --job gpus=4",
        ),
        (("--processes", "6"), "6 is not divisible by --nodes 4"),
        (
            ("--job", "time=01:00:00", "--job", "gpu_memory=1GiB"),
            "of a GPU, of whose 1.1 GB 95% can be planned",
        ),
        (("--grace-seconds", "inf"), "Invalid value for '--grace-seconds'"),
        (("--node-rank", "1"), "--node-rank: a job has a run folder of its own"),
        (("--max-restarts", "3"), "--max-restarts: a job has a run folder of its own"),
        (("--run-folder", "x"), "--run-folder: a job has a run folder of its own"),
        (("--submit", "--dry-run"), "leave one of them out"),
        (("--job", "time=01:00:00", "output.folder=with space"), "without spaces, quotes and %"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_slurm(rendered: Rendering, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    """It is said what was got, and what to change."""
    assert message in rendered.finetune_here(*BASIC, *words, code=2).stderr
    assert not list(tmp_path.glob("runs/*")) + list(tmp_path.glob("with space/*"))


@pytest.mark.parametrize(
    ("on", "words", "message"),
    [
        ("kubernetes", ("--job", "claim=x"), "image is absent"),
        ("kubernetes", ("--job", "calim=1"), "Did you mean claim?"),
        ("kubernetes", ("output.name=12x",), "a letter first"),
        ("skypilot", ("--job", "bucket=s3://x"), "needs --job accelerators=KIND"),
        ("skypilot", ("--job", "time=01:00:00"), "expected KEY=VALUE with a KEY of"),
        ("pbs", (), "--on: got 'pbs', expected one of slurm, kubernetes, skypilot"),
    ],
)
def test_others(rendered: Rendering, on: str, words: tuple[str, ...], message: str) -> None:
    """The same of the other clusters."""
    given = [word for word in words if "=" in word]
    more = OF_CLUSTERS.get(on, ()) if "output.name=12x" in given else ()
    settings = [word for value in more for word in ("--job", value)]
    said = rendered.finetune_here("train", "tiny.yaml", "--on", on, *settings, *words, code=2).stderr
    assert message in said


def test_a_recipe_that_is_not_in_the_working_folder(rendered: Rendering, recipe: Path) -> None:
    """SkyPilot's nodes get a copy of the working folder, and nothing else."""
    words = ("--on", "skypilot", "--job", "bucket=s3://x", "--job", "gpus=0")
    said = rendered.finetune_here("train", str(recipe), *words, code=2).stderr
    assert "relative to the working folder" in said


@pytest.mark.parametrize("words", [("--job", "time=1"), ("--submit",), ("--dry-run",)])
def test_a_job_without_a_cluster(rendered: Rendering, words: tuple[str, ...]) -> None:
    """Each of these is about one."""
    assert (
        f"{words[0]} is about a cluster's job"
        in rendered.finetune_here("train", "tiny.yaml", *words, code=2).stderr
    )
