"""Every key that accelerate can write into a file is honoured, refused by name, or harmless with a reason."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config import cluster
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from ruamel.yaml import YAML

from finetune import environment
from finetune.engines.launch.check import check_launch, plan_launch
from finetune.engines.launch.configs import config_of_environment, find_config, shipped
from finetune.engines.launch.keys import known_keys, sections
from finetune.engines.launch.processes import of_accelerate
from finetune.errors import LaunchError
from finetune.recipe.schema import Recipe

KEYS = known_keys()
SECTIONS = {name: section.prefix for name, section in sections().items()}
ONE_KEY = ("fp8_config", "megatron_lm_config", "parallelism_config", "mpirun_config")
"""Sections that are refused whole."""
ZERO = "distributed_type: DEEPSPEED\ndeepspeed_config:"


def accelerates_keys() -> Iterator[str]:
    """What `accelerate config` writes and `accelerate launch` reads, from accelerate's own classes, questions
    and parser."""
    for field in dataclasses.fields(ClusterConfig):
        if field.name not in SECTIONS:
            yield field.name
    yield from ("dynamo_backend", "fp16")  # of older files
    asked = inspect.getsource(cluster)
    for section in SECTIONS:
        for prefix, key in re.findall(rf'{section}\[(prefix \+ )?"(\w+)"\]', asked):
            yield f"{section}.{SECTIONS[section] if prefix else ''}{key}"
    groups = {"DeepSpeed Arguments": "deepspeed_config", "FSDP Arguments": "fsdp_config"}
    for group in launch_command_parser()._action_groups:
        if group.title in groups:
            yield from (f"{groups[group.title]}.{action.dest}" for action in group._group_actions)


def test_every_key_has_its_verdict() -> None:
    """The table has each of accelerate's keys with a reason or an expectation; a new version's key fails
    here."""
    found = set(accelerates_keys())
    assert len(found) > 60
    assert found <= set(KEYS)
    assert set(KEYS) - found == {
        "fsdp_config.fsdp_ignored_modules"
    }  # which its launcher reads, and no parser has
    assert set(ONE_KEY) <= set(KEYS)
    assert all(key.why for key in KEYS.values())


def write(folder: Path, tree: dict[str, Any]) -> str:
    path = folder / "mine.yaml"
    with path.open("w") as file:
        YAML().dump(tree, file)
    return str(path)


def tree_with(name: str, value: Any) -> dict[str, Any]:
    """A configuration that can be used but for that key."""
    section, _, key = name.rpartition(".")
    kinds = {
        "deepspeed_config": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}},
        "fsdp_config": {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}},
    }
    tree: dict[str, Any] = {"num_processes": 2} | kinds.get(section, {"distributed_type": "MULTI_GPU"})
    if section:
        tree[section] = tree.get(section, {}) | {key: value}
    else:
        tree[key] = value
    return tree


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.fate == "refused"])
def test_what_is_refused_is_named(tmp_path: Path, name: str) -> None:
    """A value that asks for something is refused with the key's name and the reason; one that asks for
    nothing is not."""
    with pytest.raises(LaunchError) as caught:
        find_config(write(tmp_path, tree_with(name, {"a": 1} if name in ONE_KEY else "something")))
    assert name in str(caught.value)
    assert KEYS[name].why in str(caught.value)
    for nothing in (None, False, "no", "none", {}, []):
        assert find_config(write(tmp_path, tree_with(name, nothing)))


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.fate == "honoured"])
def test_what_can_not_be_honoured_is_named(tmp_path: Path, name: str) -> None:
    """A value that the key can't have is refused with the key's name and what it may be."""
    for value in ("bananas!", [1], {"a": 1}, -3):
        if name == "main_process_ip" and isinstance(value, str):
            continue  # which is a host, until it is looked up
        with pytest.raises(LaunchError, match=re.escape(name)):
            find_config(write(tmp_path, tree_with(name, value)))


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.fate == "harmless"])
def test_what_is_harmless_changes_nothing(tmp_path: Path, name: str) -> None:
    """With any value of it, the processes are told the same."""
    told = []
    for value in (None, "true", "anything", 7):
        told.append(of_accelerate(find_config(write(tmp_path, tree_with(name, value)))))
    assert all(one == told[0] for one in told)


@pytest.mark.parametrize(
    ("machines", "rank", "ip", "port", "expected"),
    [
        (2, 1, "127.0.0.1", 29876, (2, 1, "127.0.0.1:29876")),
        (2, 0, "localhost", "29876", (2, 0, "localhost:29876")),
        (1, 0, "10.1.2.3", 29876, (1, 0, "None")),
        (None, None, None, None, (1, 0, "None")),
    ],
)
def test_machines_of_a_file(
    tmp_path: Path,
    machines: int | None,
    rank: int | None,
    ip: str | None,
    port: Any,
    expected: tuple[int, int, str],
) -> None:
    """num_machines, machine_rank, main_process_ip and main_process_port are the launch's; the command line
    goes before them."""
    tree = {"num_machines": machines, "machine_rank": rank, "main_process_ip": ip, "main_process_port": port}
    path = write(tmp_path, {"distributed_type": "MULTI_GPU", "num_processes": 4} | tree)
    launch = plan_launch(path, processes=None)
    assert (launch.nodes, launch.node_rank, str(launch.rendezvous), launch.processes) == (*expected, 4)
    other = plan_launch(path, processes=6, nodes=3, node_rank=2, rendezvous="127.0.0.1:1")
    assert (other.nodes, other.node_rank, str(other.rendezvous), other.processes) == (3, 2, "127.0.0.1:1", 6)


def test_machines_without_an_address_are_refused(tmp_path: Path) -> None:
    """Two machines of a file that doesn't say where they meet would train two runs."""
    path = write(tmp_path, {"distributed_type": "MULTI_GPU", "num_processes": 2, "num_machines": 2})
    with pytest.raises(LaunchError, match=r"needs --rendezvous HOST:PORT.*main_process_ip"):
        plan_launch(path, processes=None)


def recipe(**train: Any) -> Recipe:
    sections = {"global_batch_size": 8, "precision": "fp32"} | train
    tree = {
        "model": {"base": "a/b"},
        "data": {"train": [{"generated": "orders", "format": "messages"}]},
        "train": sections,
    }
    return Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("values", "train", "wrong"),
    [
        ({"gradient_accumulation_steps": 4}, {}, None),  # 8 packs over 2 processes of micro-batches of 1
        ({"gradient_accumulation_steps": "4"}, {}, None),
        ({"gradient_accumulation_steps": "auto"}, {}, None),
        ({"gradient_accumulation_steps": 8}, {}, "gradient_accumulation_steps is 8, and 4 in the recipe"),
        ({"gradient_accumulation_steps": 1}, {"micro_batch_size": 2}, "gradient_accumulation_steps is 1, and 2"),
        ({"gradient_clipping": 1.0}, {}, None),
        ({"gradient_clipping": "auto"}, {}, None),
        ({"gradient_clipping": 0.01}, {}, "gradient_clipping is 0.01, and 1 in the recipe"),
        ({"gradient_clipping": 1}, {"max_gradient_norm": None}, "gradient_clipping is 1, and 0"),
        ({"mixed_precision": "no"}, {"precision": "bf16"}, None),
        ({"mixed_precision": "bf16"}, {"precision": "bf16"}, None),
        ({"mixed_precision": "bf16"}, {"precision": "fp32"}, "mixed_precision is bf16, and train.precision is fp32"),
        ({"mixed_precision": "fp16"}, {"precision": "bf16"}, "mixed_precision is fp16"),
        ({"fp16": True}, {}, "mixed_precision is fp16"),
        ({"mixed_precision": "fp8"}, {}, "mixed_precision is fp8"),
    ],
)  # fmt: skip
def test_a_file_and_its_recipe_agree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    train: dict[str, Any],
    wrong: str | None,
) -> None:
    """What both say of learning is refused where the two disagree, before any process starts, and in one
    message."""
    monkeypatch.setattr("finetune.engines.deepspeed.DeepSpeed.check_installed", lambda engine: None)
    top = {name: value for name, value in values.items() if "gradient" not in name}
    inner = {name: value for name, value in values.items() if "gradient" in name}
    tree = {
        "distributed_type": "DEEPSPEED",
        "num_processes": 2,
        "deepspeed_config": {"zero_stage": 2} | inner,
    } | top

    def check() -> None:
        check_launch(plan_launch(write(tmp_path, tree), processes=None), recipe(**train))

    if wrong is None:
        check()
    else:
        with pytest.raises(LaunchError, match=re.escape(wrong)):
            check()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ZERO} {{zero_stage: 1, offload_optimizer_device: cpu}}\n", "zero_stage 1 with an offload device"),
        (f"{ZERO} {{zero_stage: 2, offload_param_device: cpu}}\n", "only zero_stage 3 shards parameters"),
        (f"{ZERO} {{zero_stage: 3, offload_param_device: nvme}}\n", "set it to none or cpu"),
        (f"{ZERO} {{zero_stage: 3, optimizer: {{type: Adam}}}}\n", "optimizer: unknown key"),
        ("distributed_type: MULTI_GPU\nnum_processes: two\n", "num_processes is two; set it to a whole number from 1"),
        ("distributed_type: MULTI_GPU\nnum_processes: 0\n", "num_processes is 0"),
        ("distributed_type: MULTI_GPU\nnum_process: 2\n", "num_process: unknown key; did you mean num_processes?"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: two}\n", "fsdp_version is two; set it to 2"),
        ("distributed_type: FSDP\nfsdp_config: {version: 1}\n", "fsdp_version is 1; set it to 2"),
        ("distributed_type: FSDP\n", "fsdp_version is not set, which is 1; set it to 2"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: zero2\n", "deepspeed_config is zero2, expected a section of keys"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: [zero_stage]\n", "expected a section of keys"),
        ("1: 2\n", "1: unknown key"),
        ("distributed_type: MULTI_GPU\ndistributed_type: FSDP\n", "is no YAML file"),
        ("a: !!python/object:os.system x\n", "is no YAML file"),
        ("", "is no accelerate configuration"),
        ("\x00", "is no YAML file"),
    ],
)  # fmt: skip
def test_malformed_files_are_one_message(tmp_path: Path, text: str, expected: str) -> None:
    """Whatever stands in a file, its first fault is said with its key and what it may be."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(LaunchError, match=re.escape(expected)):
        find_config(str(path))


def test_all_faults_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    """Three keys that can't be honoured are three lines of one message."""
    tree = {
        "distributed_type": "MULTI_GPU",
        "num_processes": "two",
        "rdzv_backend": "c10d",
        "tpu_name": "mine",
    }
    with pytest.raises(LaunchError) as caught:
        find_config(write(tmp_path, tree))
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:]] == [
        "num_processes",
        "rdzv_backend",
        "tpu_name",
    ]


def test_yaml_as_accelerate_reads_it(tmp_path: Path) -> None:
    """no, off and quoted numbers are what accelerate takes them for, and so is a file of JSON."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "distributed_type: NO\nuse_cpu: yes\ndebug: off\nmixed_precision: no\nnum_processes: '1'\n"
    )
    config = find_config(str(path))
    assert (config.engine.name, config.use_cpu, config.debug, config.processes) == ("single", True, False, 1)
    path.write_text(
        '{"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": "2"}, "num_processes": 2}'
    )
    assert find_config(str(path)).engine.name == "zero2"


@pytest.mark.parametrize("name", [name for name in shipped() if name != "cpu"])
def test_raw_accelerate_says_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process finds in its environment under `accelerate launch` is judged as the file is, and gives
    its engine."""
    from accelerate.commands.launch import _validate_launch_command
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    config = find_config(name)
    words = ["--config_file", str(config.path), "--main_process_port", "0", "x.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    told = (
        prepare_deepspeed_cmd_env(arguments)[1]
        if arguments.use_deepspeed
        else prepare_multi_gpu_env(arguments)
    )
    for variable in environment.OF_ACCELERATE:
        monkeypatch.delenv(variable, raising=False)
    for variable in environment.OF_ACCELERATE.keys() & told.keys():
        monkeypatch.setenv(variable, told[variable])
    found = config_of_environment()
    assert found is not None
    assert (found.engine, dict(found.settings), found.learning) == (
        config.engine,
        dict(config.settings),
        config.learning,
    )


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend is INDUCTOR"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config is true"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "megatron_lm_config is true"),
        ("ACCELERATE_CPU_AFFINITY", "1", "enable_cpu_affinity is 1"),
    ],
)
def test_raw_accelerate_is_refused_what_a_file_is(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words, whether they come in a file or in the environment."""
    for name in environment.OF_ACCELERATE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert config_of_environment() is None
    monkeypatch.setenv(variable, value)
    with pytest.raises(LaunchError, match=expected):
        config_of_environment()
