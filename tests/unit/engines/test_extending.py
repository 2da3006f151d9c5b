"""An engine that is added: docs/extending_engines.md as it stands, and one that is made up here."""

import re
from pathlib import Path

import pytest

from finetune.engines import registry
from finetune.engines.base import Engine, Method, Refusal, Requirement
from finetune.engines.ddp import DDP, Ddp
from finetune.engines.launch.configs import find_config
from finetune.engines.launch.processes import of_accelerate
from finetune.engines.tables import guide_table, matrix_table, memory_table
from finetune.machine import extras
from tests.support.cli import Says
from tests.support.manual import example_of, module_of, table_of


class Pairs(Ddp):
    """As ddp, whose processes share no row, and without QLoRA."""

    kinds = ("MULTI_CPU",)
    splits_rows = False
    packages = (Requirement("library_of_pairs", "pairs are refused without it"),)

    def refusal(self, method: Method, precision: str) -> Refusal | None:
        """QLoRA."""
        return (
            Refusal("pairs have no NF4", "ddp") if method == "qlora" else super().refusal(method, precision)
        )


def add(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """One more in the tuple."""
    monkeypatch.setattr(registry, "ENGINES", (engine, *registry.ENGINES))


def test_one_more_in_the_tuple_is_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    """The matrix, doctor, plan and the launch have a made-up engine, and refuse what it refuses, without a
    line elsewhere."""
    assert "pairs" not in says("doctor", "--matrix")[1]
    add(monkeypatch, Pairs("pairs"))
    assert "`pairs`" in matrix_table()
    assert "| pairs | b P + 4 A | 4 A | 8 A | X |" in memory_table()
    _, shown = says("doctor", "--matrix")
    assert "pairs" in shown.splitlines()[0]
    assert "-  pairs have no NF4" in shown
    (found,) = (fact for fact in extras() if fact.name == "library_of_pairs")
    assert (found.value, found.remark) == ("absent", "pairs are refused without it")
    assert "pairs, checkpointing" in says("plan", "quickstart", "--gpus", "4")[1]
    code, shown = says("plan", "quickstart", "--gpus", "4", "--launch", "pairs", "adapter.method=qlora")
    assert code == 2
    assert "--launch pairs does not go with this recipe on 4 GPUs; expected one of ddp, zero1" in shown
    path = tmp_path / "pairs.yaml"
    path.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    assert says("check", "quickstart", "--launch", str(path), "train.micro_batch_size=2")[0] == 0
    code, shown = says("check", "quickstart", "--launch", str(path), "adapter.method=qlora")
    assert code == 2
    assert "qlora with --launch pairs: pairs have no NF4. Take ddp." in shown
    words = (
        "check",
        "quickstart",
        "data.pack_length_tokens=512",
        "train.sequence_parallel_size=2",
        "--launch",
    )
    assert says(*words, "ddp")[0] == 0
    code, shown = says(*words, str(path))
    assert code == 2
    assert "train.sequence_parallel_size: 2: the processes of pairs share no row" in shown


@pytest.fixture
def of_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Engine, str]:
    """The page's engine in the registry, and its file."""
    engine: Engine = module_of("extending_engines").DDP_FP16
    add(monkeypatch, engine)
    path = tmp_path / "ddp_fp16.yaml"
    path.write_text(example_of("extending_engines", "yaml"))
    return engine, str(path)


def test_the_pages_engine_is_one(of_the_page: tuple[Engine, str], says: Says) -> None:
    """Its file asks for it, and no other's does; its processes are told; what it refuses is refused; tables
    have it."""
    engine, path = of_the_page
    config = find_config(path)
    assert config.engine is engine
    assert find_config("ddp").engine is DDP
    assert of_accelerate(config)["FINETUNE_DDP_FP16"] == "true"
    assert "`ddp_fp16`" in guide_table()
    code, shown = says(
        "check",
        "quickstart",
        "--launch",
        path,
        "train.micro_batch_size=4",
        "adapter=null",
        "adapter.method=full",
    )
    assert code == 2
    assert "full with --launch ddp_fp16: gradients of all weights were never shown" in shown
    assert "ddp_fp16" in says("plan", "quickstart", "--gpus", "2")[1]
    Path(path).write_text("distributed_type: MULTI_GPU\ngradients_config: {travel_in: fp8}\n")
    code, shown = says("check", "quickstart", "--launch", path)
    assert code == 2
    assert "gradients_config.travel_in is fp8; set it to fp16" in shown


def test_the_page_names_what_an_engine_says() -> None:
    """Each method and attribute in its table is one of Engine's, and each of Engine's is in it."""
    table = table_of("extending_engines")
    told = set(re.findall(r"`(\w+)`", table)) - {"finetune"}
    own = {name for name in vars(Engine) if not name.startswith("_")} | set(Engine.__dataclass_fields__)
    assert told == own - {"shards_weights"}  # which follows from another
