"""Whether a launch can work, before any process starts. Torch-free but for the number of GPUs."""

import importlib.util
import shutil
import socket

from finetune.errors import LaunchError
from finetune.launch.configs import find_config
from finetune.launch.matrix import method_of, refusal
from finetune.launch.processes import Launch, host_of
from finetune.recipe.rules_engines import engine_problem
from finetune.recipe.schema import Recipe


def plan_launch(
    name: str,
    *,
    processes: int | None,
    nodes: int = 1,
    node_rank: int = 0,
    rendezvous: str | None = None,
    max_restarts: int = 0,
    patience_minutes: float = 30.0,
) -> Launch:
    """A launch as the command line asks for it. Raises LaunchError where its parts don't fit together."""
    config = find_config(name)
    total = processes or config.processes
    if config.engine == "cpu" and total > 1:
        raise LaunchError(f"--launch {name} is one process; for {total} take ddp, zero1 to zero3 or fsdp2.")
    if total % nodes:
        raise LaunchError(f"--processes {total} are those of all machines together, and don't divide by --nodes {nodes}.")
    if not 0 <= node_rank < nodes:
        raise LaunchError(f"--node-rank: got {node_rank}, expected 0 to {nodes - 1} with --nodes {nodes}.")
    if nodes > 1 and rendezvous is None:
        raise LaunchError(
            "--nodes needs --rendezvous HOST:PORT, where the processes of all machines meet: machine 0's address."
        )
    if nodes == 1 and rendezvous is not None:
        raise LaunchError("--rendezvous is where several machines meet; give --nodes too, or leave it out.")
    if nodes > 1 and max_restarts:
        raise LaunchError("--max-restarts goes on by itself on one machine only; with --nodes, start again with --resume.")
    if rendezvous is not None:
        host_of(rendezvous)
        if node_rank == 0:
            refuse_used_port(rendezvous)
    return Launch(config, total, nodes, node_rank, rendezvous, max_restarts, patience_minutes)


def refuse_used_port(rendezvous: str) -> None:
    """Raises LaunchError where somebody listens on machine 0's port already."""
    host, port = host_of(rendezvous)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise LaunchError(
                f"--rendezvous {rendezvous} can't be used on this machine: {error.strerror}. Take another."
            ) from None


def check_launch(launch: Launch, recipe: Recipe) -> None:
    """Raises LaunchError where this recipe can't be trained so, with the reason and the nearest way that can."""
    engine, train = launch.config.engine, recipe.train
    method = method_of(recipe.adapter.method, recipe.adapter.use_dora)
    why = refusal(method, engine, train.precision)
    if why is not None:
        raise LaunchError(f"{method} with --launch {launch.config.name}: {why.reason}. Take {why.nearest}.")
    problem = engine_problem(recipe, engine)
    if problem is not None:
        raise LaunchError(f"--launch {launch.config.name} can't be used with {problem}")
    uneven = train.uneven_over(launch.processes)
    if uneven is not None:
        raise LaunchError(uneven)
    if engine.startswith("zero"):
        refuse_without_deepspeed(engine)


def refuse_without_deepspeed(engine: str) -> None:
    """Raises LaunchError where DeepSpeed isn't installed, or can't build the part of it that offloading needs."""
    if importlib.util.find_spec("deepspeed") is None:
        raise LaunchError(f"--launch {engine} needs deepspeed, which is not installed: pip install deepspeed, or take fsdp2.")
    absent = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if absent:
        raise LaunchError(
            f"DeepSpeed compiles an extension and needs {' and '.join(absent)}, which is not here; or take fsdp2."
        )


def refuse_more_than_devices(launch: Launch) -> None:
    """Raises LaunchError where a machine with GPUs is asked for more processes than it has of them."""
    import torch

    here, devices = launch.processes // launch.nodes, torch.cuda.device_count()
    if torch.cuda.is_available() and here > devices:
        raise LaunchError(f"--processes asks for {here} on this machine, which has {devices} GPUs. Lower it.")
