"""wandb's word on a run: its own variables and files, read by its own code, for what the recipe leaves
open."""

from typing import Any, Literal

from finetune.errors import TrackerError
from finetune.recipe.schema.tracking import TrackingSection

Mode = Literal["online", "offline", "shared", "disabled"]
OLD_NAMES: dict[str, Mode] = {"dryrun": "offline", "run": "online"}
NO_ACCOUNT = "wandb has no account here (WANDB_API_KEY, or wandb login)"


def global_settings() -> Any:
    """wandb's settings as they are without a run's own. Raises TrackerError where a variable's value is none
    of its."""
    import wandb
    from wandb.sdk import wandb_setup

    if wandb_setup.singleton().did_environment_change():
        wandb.teardown()
    try:
        return wandb_setup.singleton().settings
    except ValueError as error:  # pydantic's, which names the field
        raise TrackerError(
            f"wandb's settings in the environment are wrong: {' '.join(str(error).split())}"
        ) from None


def has_account() -> bool:
    """Whether wandb would find credentials: in the environment, in its settings, or in ~/.netrc (`wandb
    login`)."""
    from wandb.sdk.lib import wbauth

    settings = global_settings()
    return bool(
        settings.api_key or settings.identity_token_file or wbauth.read_netrc_auth(host=settings.base_url)
    )


def wandb_mode(section: TrackingSection) -> Mode:
    """Where a run goes: as the recipe says, else as wandb's environment does, else online where there is an
    account.

    The environment's offline and disabled always hold. Raises TrackerError for online against it, or without
    an account.
    """
    settings = global_settings()
    said: Mode | None = (
        OLD_NAMES.get(settings.mode, settings.mode) if "mode" in settings.model_fields_set else None
    )
    if said in ("offline", "disabled") and section.wandb_mode == "online":
        raise TrackerError(
            f"tracking.wandb_mode is online, and WANDB_MODE is {said}: make the two agree, or leave one out."
        )
    if said == "disabled":
        return said
    mode: Mode | None = said if section.wandb_mode == "auto" else section.wandb_mode
    if mode in ("online", "shared") and not has_account():
        where = "tracking.wandb_mode" if section.wandb_mode != "auto" else "WANDB_MODE"
        raise TrackerError(
            f"{where} {mode} needs an account: set WANDB_API_KEY, or run wandb login; or set it to offline."
        )
    return mode or ("online" if has_account() else "offline")


def open_settings(run_id: str, folder: str, finish_seconds: float) -> dict[str, Any]:
    """What wandb.init is given beside the recipe's own: for each that wandb's environment says, nothing.

    At the end of a run its server is waited for `finish_seconds`; by itself wandb waits for ever.
    """
    import wandb

    said = global_settings().model_fields_set
    chosen = {"name": ("run_name", run_id), "dir": ("root_dir", folder), "resume": ("resume", "allow")}
    # A run of its own, also beside another one of this process, which wandb would give back.
    wanted = (
        ("console", "off"), ("silent", True), ("reinit", "create_new"),
        ("finish_timeout", finish_seconds), ("finish_timeout_raises", True),
    )  # fmt: skip
    more: dict[str, Any] = {name: value for name, value in wanted if name not in said}
    found = {name: value for name, (field, value) in chosen.items() if field not in said}
    return found | {"settings": wandb.Settings(**more)}
