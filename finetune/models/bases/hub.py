"""The Hugging Face hub: files of a repository, out of its cache where they are there. Loads no torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_prep.sources.hub import hub_token
from data_prep.text import one_line
from finetune.errors import ModelError
from finetune.models.bases.folder import (
    ADAPTER_CONFIG,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    MASK,
    PICKLED,
    WEIGHTS,
    is_adapter,
)
from finetune.recipe.paths import HUB_ID

UNUSED = ("consolidated*", "adapter_model*", "*/*.safetensors", "original/*", "checkpoint-*/*")
"""What a base's repository may hold beside the model: a copy in another layout, an adapter, the training's
checkpoints."""

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", MASK)
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", CONFIG, "*.jinja")
ADAPTER_FILES = ("*.json", "adapter_model.*", "*.jinja", "tokenizer.model")
DESCRIPTIONS = (CONFIG, ADAPTER_CONFIG, INDEX, GENERATION_CONFIG)
"""Small files that say what a repository is."""


def is_hub_id(text: str) -> bool:
    """Whether a text can be the name of a repository, owner/name."""
    return HUB_ID.fullmatch(text) is not None


@contextmanager
def hub_errors(name: str, revision: str | None = None, named_in: str = "model.base") -> Iterator[None]:
    """Turn what the hub's client raises for the repository `name` into a ModelError that says what to do.

    `named_in` is where the user finds the name: a recipe's key, a file.
    """
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"{named_in}: {name} is gated. Accept its licence at https://huggingface.co/{name} and set "
            "HF_TOKEN to your token."
        ) from None
    except RepositoryNotFoundError:
        private = "HF_TOKEN may not read it" if hub_token() else "it is private: set HF_TOKEN"
        raise ModelError(
            f"{named_in}: the hub has no model {name} (or {private}). "
            "A folder is written with a leading ./ or /."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{named_in}: {name} has no revision {revision} on the hub.") from None
    except HFValidationError as error:
        raise ModelError(f"{named_in}: {name!r} is not a hub id: {error}") from None
    except (HTTPError, OSError) as error:
        raise ModelError(
            f"{named_in}: {name} is not in the local hub cache and could not be fetched: "
            f"{refusal(error)}. Check that, or name a local folder."
        ) from error


def refusal(error: BaseException) -> str:
    """Why the hub's client came back without what was asked, in words."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return "HF_HUB_OFFLINE is set"
    answered = [one for one in chain if isinstance(one, HfHubHTTPError)]
    if not answered:
        return f"the connection to the hub failed ({one_line(str(chain[-1])) or type(chain[-1]).__name__})"
    status = answered[-1].response.status_code
    if status == 401:
        return "the hub does not know HF_TOKEN (401)" if hub_token() else "the hub asks for HF_TOKEN (401)"
    if status == 403:
        return "HF_TOKEN has no permission for it (403)"
    if status == 429:
        return "the hub limits requests for now (429); later ones, or ones with HF_TOKEN, may pass"
    return f"the hub answers {status}"


def snapshot(
    name: str,
    revision: str | None,
    files: Sequence[str],
    *,
    named_in: str = "model.base",
    unused: Sequence[str] = UNUSED,
) -> Path:
    """The folder of a repository's snapshot, with these files where it has them. Its name is the commit.

    Raises ModelError where the repository can't be had.
    """
    from huggingface_hub import snapshot_download

    token = hub_token()
    with hub_errors(name, revision, named_in):
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(files), ignore_patterns=list(unused), token=token
            )
        )


def description_of(
    name: str, revision: str | None = None, *, named_in: str = "model.base"
) -> tuple[Path, bool]:
    """A snapshot with the small files that say what a repository is, and whether it is an adapter.

    As in a folder, an adapter beside whole weights is none. Raises ModelError where the repository can't be
    had.
    """
    folder = snapshot(name, revision, DESCRIPTIONS, named_in=named_in)
    if not is_adapter(folder) or not (folder / CONFIG).is_file():
        return folder, is_adapter(folder)
    # The weights, which would decide it, are not fetched for this.
    return folder, not any(_has_file(name, folder.name, file) for file in (WEIGHTS, INDEX, *PICKLED))


def _has_file(name: str, commit: str, file: str) -> bool:
    """Whether a repository has a file, by the hub; False where that can't be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi(token=hub_token()).file_exists(name, file, revision=commit)
    except (HfHubHTTPError, OSError):
        return False


def adapter_snapshot(name: str, revision: str | None = None, *, named_in: str = "model.base") -> Path:
    """The folder of an adapter's repository, with its weights and tokenizer. Raises ModelError where it can't
    be had."""
    return snapshot(name, revision, ADAPTER_FILES, named_in=named_in, unused=("*/*",))
