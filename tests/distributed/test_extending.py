"""A format and a metric that a program adds to their tuples, over two processes: each of them has both."""

import json
import sys
from pathlib import Path

import pytest

from tests.distributed.launches import Train, accelerate_launch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="launches are shown on Linux only")

SCRIPT = """
from data_prep import formats
from data_prep.formats.base import Columns, Format, ask
from finetune.cli.app import run
from finetune.scoring import metrics
from finetune.scoring.metrics.base import Metric, mean_over


def parse(values, options):
    return [ask(values["asked"], values["said"])]


def by_row(measured):
    return [float(len(answer.said)) for answer in measured.answers]


formats.FORMATS += (Format("asked_and_said", "", Columns((("asked", "said"),)), parse),)
metrics.METRICS += (Metric("characters", "answers", mean_over(by_row), "answers", scale="characters", by_row=by_row),)
raise SystemExit(run())
"""


@pytest.mark.long
def test_two_processes_have_what_a_program_adds(train: Train, tmp_path: Path) -> None:
    """Rows of the format train, and the metric is measured in training and of the result, as in one
    process."""
    rows = [
        {"asked": f"{colour} {index}?", "said": colour * (1 + index % 3)}
        for index in range(12)
        for colour in ("red", "green")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "script.py").write_text(SCRIPT)
    script = str(tmp_path / "script.py")
    sections = {
        "data": {"train": [{"path": "rows.jsonl", "format": "asked_and_said"}]},
        "train": {"evaluate_every": 2},
        "evaluate": {"metrics": ["loss", "characters"], "max_new_tokens": 4, "rows_in_training": 2},
    }
    alone = train(command=[sys.executable, script], **sections)
    both = train(command=[*accelerate_launch("ddp"), script], **sections)
    for name in ("eval/characters", "final/characters", "final/loss"):
        assert both.losses(name) == pytest.approx(alone.losses(name), rel=1e-4)
        assert both.losses(name)
