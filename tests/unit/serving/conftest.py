"""A base and an adapter of it, served in this process."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.adapters import make_adapter
from tests.support.serving import Running, running


@pytest.fixture(scope="session")
def models(memorised: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model that knows MEMORISED by heart, and a random adapter of it. Never write to them."""
    adapter = tmp_path_factory.mktemp("served") / "tuned"
    make_adapter(memorised, adapter, lora_alpha=64)
    return {"lamps": memorised, "tuned": adapter}


@pytest.fixture(scope="session")
def served(models: dict[str, Path]) -> Iterator[Running]:
    """Both, in float32."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("finetune.models.device.cpu_has_native_bf16", lambda: False)
        with running([f"{name}={folder}" for name, folder in models.items()]) as server:
            yield server


@pytest.fixture
def client(served: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="any", max_retries=0) as found:
        yield found
    served.wait_idle()
