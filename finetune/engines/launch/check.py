"""Whether a launch can work, before any process starts. Torch-free but for the number of GPUs."""

import os

from finetune import environment
from finetune.engines.base import Engine, method_of
from finetune.engines.launch.addresses import parse_address
from finetune.engines.launch.configs import LaunchConfig, config_of_environment, find_config
from finetune.engines.launch.processes import Launch
from finetune.errors import LaunchError
from finetune.recipe.schema import Recipe


def plan_launch(
    name: str,
    *,
    processes: int | None,
    nodes: int | None = None,
    node_rank: int | None = None,
    rendezvous: str | None = None,
    max_restarts: int = 0,
    timeout_minutes: float = 30.0,
) -> Launch:
    """A launch as the command line and the file ask for it, the command line first.

    Raises LaunchError where its parts don't fit together.
    """
    config = find_config(name)
    total, machines = processes or config.processes, nodes or config.machines
    rank = config.machine_rank if node_rank is None else node_rank
    check_split(config, total, machines)
    if not 0 <= rank < machines:
        raise LaunchError(f"--node-rank: got {rank}, expected 0 to {machines - 1} with --nodes {machines}.")
    if machines == 1 and rendezvous is not None:
        raise LaunchError("--rendezvous is where several machines meet; give --nodes too, or leave it out.")
    place = (rendezvous or config.meeting) if machines > 1 else None
    if machines > 1 and place is None:
        raise LaunchError(
            f"--nodes needs --rendezvous HOST:PORT, where the processes of all {machines} machines meet: "
            "machine 0's address (main_process_ip and main_process_port of a file)."
        )
    address = parse_address(place) if place is not None else None
    if address is not None and rank == 0:
        address.listener().close()
    return Launch(config, total, machines, rank, address, max_restarts, timeout_minutes)


def check_split(config: LaunchConfig, processes: int, machines: int) -> None:
    """Raises LaunchError where so many processes can't be started so, or not on so many machines."""
    if not config.engine.several and processes > 1:
        raise LaunchError(
            f"--launch {config.name} is one process; for {processes} take ddp, zero1 to zero3 or fsdp2."
        )
    if processes % machines:
        raise LaunchError(
            f"--processes counts all machines: {processes} is not divisible by --nodes {machines}."
        )


def check_launch(launch: Launch, recipe: Recipe, engine: Engine | None = None) -> None:
    """Raises LaunchError where this recipe can't be trained so here, by the launch's engine or by this
    one."""
    check_recipe(launch.config, launch.processes, recipe, engine)
    launch.config.engine.check_installed()


def check_recipe(config: LaunchConfig, processes: int, recipe: Recipe, engine: Engine | None = None) -> None:
    """Raises LaunchError where this recipe can't be trained so, on whatever machine, with the reason and the
    nearest way that can."""
    engine = engine or config.engine
    refuse_method(engine, recipe, f"--launch {config.name}")
    problem = engine.problem(recipe)
    if problem is not None:
        raise LaunchError(f"--launch {config.name} can't be used with {problem}")
    uneven = recipe.train.uneven_over(processes)
    if uneven is not None:
        raise LaunchError(uneven)
    refuse_otherwise(config, recipe, processes, config.name)


def refuse_method(engine: Engine, recipe: Recipe, where: str) -> None:
    """Raises LaunchError where the engine doesn't train so, with the nearest that it does."""
    method = method_of(recipe.adapter)
    why = engine.refusal(method, recipe.train.precision)
    if why is not None:
        raise LaunchError(f"{method} with {where}: {why.reason}. Take {why.nearest}.")


def refuse_otherwise(config: LaunchConfig, recipe: Recipe, processes: int, where: str) -> None:
    """Raises LaunchError where a configuration says of learning what the recipe says otherwise."""
    train, said = recipe.train, config.learning
    derived = train.global_batch_size // (train.micro_batch_size * train.readers(processes))
    pairs = (
        (
            "gradient_accumulation_steps",
            said["gradient_accumulation_steps"],
            derived,
            "what its batch sizes give",
        ),
        (
            "gradient_clipping",
            said["gradient_clipping"],
            train.max_gradient_norm or 0.0,
            "train.max_gradient_norm",
        ),
    )
    wrong = [
        f"{name} is {mine:g}, and {value:g} in the recipe ({of})"
        for name, mine, value, of in pairs
        if mine not in (None, value)
    ]
    precision = said["mixed_precision"]
    if precision != "no" and precision != resolved_precision(train.arithmetic):
        wrong.append(
            f"mixed_precision is {precision}, and train.precision is {train.precision} in the recipe"
        )
    if said["activation_checkpointing"] and train.activation_checkpointing:
        wrong.append(
            "fsdp_activation_checkpointing is true, and so is train.activation_checkpointing in the recipe"
        )
    if wrong:
        raise LaunchError(
            f"{where}: {'; '.join(wrong)}. The recipe decides: make the two agree, or leave it to the recipe."
        )


def check_alone(config: LaunchConfig, recipe: Recipe) -> list[str]:
    """Notes on a launch of one process, which is a plain run. Raises LaunchError where that is not what is
    asked for."""
    if config.use_cpu:
        hide_devices()
    if config.engine.offloads:
        raise LaunchError(
            f"{config.name} with one process: a plain run offloads nothing. Take more processes."
        )
    refuse_otherwise(config, recipe, 1, config.name)
    note = f"note: {config.name} with one process is a plain run: there is nothing to shard"
    return [note] if config.engine.takes_over else []


def resolved_precision(asked: str) -> str:
    """What a recipe's precision is on this machine."""
    if asked != "auto":
        return asked
    from finetune.models.device import choose_precision

    return choose_precision(asked).name


def check_environment(recipe: Recipe) -> None:
    """Raises LaunchError where `accelerate launch` was told what this toolkit, or the recipe, does
    otherwise."""
    config = config_of_environment()
    if config is None:
        return
    processes = environment.world().size
    if processes == 1:
        check_alone(config, recipe)
    else:
        refuse_otherwise(config, recipe, processes, config.name)
    config.engine.settle_environment()


def hide_devices() -> None:
    """use_cpu: before torch is imported, so that it finds no GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def refuse_more_than_devices(launch: Launch) -> None:
    """Raises LaunchError where a machine is asked for more processes, or other GPUs, than it has."""
    import torch

    from finetune.models.device import choose_device

    if launch.config.use_cpu:
        return
    choose_device()  # which refuses a GPU that torch can't use
    devices, wanted = torch.cuda.device_count(), launch.config.gpu_ids
    if wanted != "all":
        absent = [part for part in wanted.split(",") if int(part) >= devices]
        if absent:
            raise LaunchError(
                f"gpu_ids is {wanted}, and this machine has {devices} GPUs. Set it to all, or to those it "
                "has."
            )
        devices = len(wanted.split(","))
    if torch.cuda.is_available() and launch.processes_here > devices:
        raise LaunchError(
            f"--processes asks for {launch.processes_here} on this machine, which has {devices} GPUs. Lower "
            "it."
        )
