"""finetune push: what the hub then has, and what it must not get."""

import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM

import finetune
from finetune.errors import CheckpointError, FinetuneError, ModelError
from finetune.hub.card import write_merged_card
from finetune.hub.result import read_result
from finetune.run import Run
from finetune.runs.folder import RunFolder
from tests.support.adapters import make_adapter
from tests.support.cli import FinetuneHere
from tests.support.hub_server import TOKEN, Fault, Hub, Repository

NAME = "someone/tiny-orders"


@pytest.fixture(autouse=True)
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run, its adapter merged in RUN/merged."""
    folder = tmp_path_factory.mktemp("push")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(8)))
    (folder / "recipe.yaml").write_text(
        f"model: {{base: {tiny_base}}}\nadapter: {{method: lora, rank: 2}}\n"
        "data:\n  train: [{path: rows.jsonl, format: text}]\n  evaluation: {rows: 2}\n  max_length_tokens: 64\n"
        f"train: {{learning_rate: 1e-3, max_steps: 2, global_batch_size: 2, micro_batch_size: 2}}\n"
        f"tracking: {{tracker: none}}\noutput: {{folder: {folder}/runs}}\n"
    )
    run = finetune.train(folder / "recipe.yaml")
    run.merge(verify="tensors")
    return run


def test_a_run_is_pushed_and_loads_from_the_hub(hub: Hub, run: Run, tiny_base: Path) -> None:
    """By plain peft, with the same weights; nothing of the run but its adapter is there."""
    pushed = finetune.push(run, NAME)
    there = hub.model(NAME).files
    assert set(there) - {".gitattributes"} == set(pushed.files)
    assert there["adapter_model.safetensors"] == (run.adapter / "adapter_model.safetensors").read_bytes()
    assert not {"recipe.lock.yaml", "metrics.jsonl", "run.log"} & set(there)
    assert pushed.commit == hub.model(NAME).head
    model = AutoPeftModelForCausalLM.from_pretrained(NAME, token=TOKEN, dtype=torch.float32)
    assert "default" in model.peft_config


def test_a_merge_is_pulled_as_it_was(hub: Hub, run: Run) -> None:
    """Each file; the card alone is another."""
    merged = run.folder / "merged"
    finetune.push(merged, NAME)
    there = hub.model(NAME).files
    for path in merged.iterdir():
        if path.name != "README.md":
            assert there[path.name] == path.read_bytes(), path.name
    assert finetune.load(NAME).generate(["row"], max_new_tokens=2)


def test_the_card_says_what_it_is(hub: Hub, run: Run, tmp_path: Path) -> None:
    """Base, data with their hashes, the recipe's own keys, losses and checks; no folder of this machine."""
    finetune.push(run.folder / "merged", NAME)
    card = ModelCard(hub.model(NAME).files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    for part in (
        "## Verification", "## Made from", "rows.jsonl, SHA-256", "train.learning_rate: 0.001", "evaluation loss",
        "## Loading it",
    ):  # fmt: skip
        assert part in card.text, part
    made_from = card.text[card.text.index("## Made from") :]
    assert str(run.folder.parent.parent) not in made_from


def test_a_run_s_adapter_has_its_card(run: Run) -> None:
    """From its lock, before anything is pushed: metadata that the hub's library reads, data, recipe, losses,
    and no folder of this machine."""
    text = (run.adapter / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    for part in (
        "rows.jsonl, SHA-256",
        "train.learning_rate: 0.001",
        "evaluation loss",
        "FOLDER_OF_THE_ADAPTER",
    ):
        assert part in card.text, part
    assert str(run.folder.parent.parent) not in text


def test_a_merged_model_has_its_card(run: Run, tmp_path: Path) -> None:
    """What the merge found, and beside it what the lock says; its program loads the model; the same card again
    is the same text."""
    folder = tmp_path / "merged"
    finetune.merge(run, folder)
    text = (folder / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    for part in ("## Verification", "rows.jsonl, SHA-256", "train.learning_rate: 0.001", "evaluation loss"):
        assert card.text.count(part) == 1, part
    program = card.text.partition("## Loading it")[2].replace("FOLDER_OF_THE_MODEL", str(folder))
    found: dict[str, Any] = {}
    exec(textwrap.dedent(program.strip("\n")), found)  # noqa: S102 - the card's own program
    assert found["model"].config.vocab_size == found["model"].get_input_embeddings().num_embeddings
    write_merged_card(folder, RunFolder(run.folder))
    assert (folder / "README.md").read_text() == text


def test_the_licences_are_those_of_the_hub(hub: Hub, run: Run, tiny_base: Path, tmp_path: Path) -> None:
    """Of an adapter that was trained on a base of the hub."""
    hub.add("me/tiny", tiny_base, licence="llama3.2")
    recipe = (run.folder.parent.parent / "recipe.yaml").read_text().replace(str(tiny_base), "me/tiny")
    path = run.folder.parent.parent / "hub.yaml"
    path.write_text(recipe.replace("/runs}", "/hub-runs}"))
    finetune.push(finetune.train(path), NAME)
    card = ModelCard(hub.model(NAME).files["README.md"].decode())
    assert card.data.license == "llama3.2"
    assert card.data.base_model == "me/tiny"
    assert json.loads(hub.model(NAME).files["adapter_config.json"])["base_model_name_or_path"] == "me/tiny"


def test_it_is_private_where_asked(hub: Hub, run: Run) -> None:
    pushed = finetune.push(run, NAME, private=True)
    assert pushed.private
    assert hub.model(NAME).private


def test_the_same_result_again_changes_nothing(hub: Hub, run: Run) -> None:
    first = finetune.push(run, NAME)
    assert finetune.push(run, NAME).commit == first.commit


def test_other_files_are_not_written_over(hub: Hub, run: Run, tmp_path: Path) -> None:
    """But with --overwrite, which leaves those of other names."""
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    hub.add(NAME, tmp_path)
    with pytest.raises(ModelError, match=r"holds other files \(notes.txt, adapter_config.json\)"):
        finetune.push(run, NAME)
    assert len(hub.model(NAME).commits) == 1
    finetune.push(run, NAME, overwrite=True)
    assert hub.model(NAME).files["notes.txt"] == b"mine"
    assert hub.model(NAME).files["adapter_config.json"] == (run.adapter / "adapter_config.json").read_bytes()


def test_an_interrupted_upload_goes_on(hub: Hub, run: Run) -> None:
    """Nothing is in the repository; what was transferred isn't sent again."""
    hub.faults = [Fault("POST .*/commit/", 500, 99)]
    with pytest.raises(ModelError, match="was not pushed: the hub answers 500"):
        finetune.push(run, NAME)
    assert set(hub.model(NAME).files) == {".gitattributes"}
    hub.faults = []
    sent = sum(line.startswith("PUT") for line in hub.asked)
    finetune.push(run, NAME)
    assert sum(line.startswith("PUT") for line in hub.asked) == sent
    assert "adapter_model.safetensors" in hub.model(NAME).files


def test_content_that_arrives_changed_is_found(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's hashes are compared with those of the files."""
    whole = Repository.add
    monkeypatch.setattr(
        Repository,
        "add",
        lambda own, files: whole(
            own, {name: b"x" if name == "tokenizer.json" else raw for name, raw in files.items()}
        ),
    )
    with pytest.raises(FinetuneError, match=r"other content than was sent: tokenizer.json"):
        finetune.push(run, NAME)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("GET /api/whoami", 401, 9), "the hub does not know HF_TOKEN"),
        (Fault("POST /api/repos/create", 403, 9), "HF_TOKEN has no permission"),
        (Fault("GET /api/models", 429, 99), "the hub limits requests"),
        pytest.param(Fault("PUT /lfs", times=99), "the connection to the hub failed", marks=pytest.mark.long),
    ],
    ids=["token", "permission", "rate limit", "cut"],
)
def test_what_the_hub_refuses_is_said(fault: Fault, expected: str, hub: Hub, run: Run) -> None:
    hub.faults = [fault]
    with pytest.raises(ModelError, match=f"{NAME} was not pushed: {expected}"):
        finetune.push(run, NAME)


def test_without_a_token_nothing_is_asked(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelError, match="HF_TOKEN is not set"):
        finetune.push(run, NAME)
    assert hub.asked == []


def test_a_secret_is_never_uploaded(hub: Hub, run: Run, tmp_path: Path) -> None:
    """A token in any file that can be read refuses the whole."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in run.adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "notes.md").write_text(f"export HF_TOKEN={TOKEN}")
    with pytest.raises(ModelError, match=r"notes.md holds a secret \(the value of HF_TOKEN\)"):
        finetune.push(folder, NAME)
    assert hub.asked == []


def test_a_secret_among_the_tokenizer_s_tokens_is_never_uploaded(hub: Hub, run: Run, tmp_path: Path) -> None:
    """One that was added; words of the vocabulary are no secrets, whatever they look like."""
    folder = tmp_path / "adapter"
    shutil.copytree(run.adapter, folder)
    file = folder / "tokenizer.json"
    parts = json.loads(file.read_text())
    parts["model"]["vocab"] |= {TOKEN: len(parts["model"]["vocab"])}
    file.write_text(json.dumps(parts))
    assert file in read_result(str(folder)).files
    parts["added_tokens"][0]["content"] = f"<{TOKEN}>"
    file.write_text(json.dumps(parts))
    with pytest.raises(ModelError, match=r"tokenizer.json holds a secret \(the value of HF_TOKEN\)"):
        finetune.push(folder, NAME)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("made", "name", "error", "expected"),
    [
        ("absent", NAME, ModelError, "is no folder here"),
        ("empty", NAME, ModelError, "holds no result"),
        ("failed", NAME, ModelError, "did not pass its checks"),
        ("run", NAME, CheckpointError, "has no result yet"),
        ("gguf", "tiny", ModelError, "'tiny' is no repository's name: expected OWNER/NAME"),
    ],
)
def test_bad_input_is_refused_before_the_hub_is_asked(
    made: str, name: str, error: type[FinetuneError], expected: str, hub: Hub, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / {"failed": "merged.failed"}.get(made, made)
    if made != "absent":
        folder.mkdir()
    if made == "run":
        (folder / "recipe.lock.yaml").write_bytes((run.folder / "recipe.lock.yaml").read_bytes())
        (folder / "checkpoints").mkdir()
    if made == "gguf":
        (folder / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(error, match=expected):
        finetune.push(folder, name)
    assert hub.asked == []


def test_the_command_prints_where_it_is(hub: Hub, run: Run, finetune_here: FinetuneHere) -> None:
    """The address, the commit, and that each file has its hash."""
    done = finetune_here("push", str(run.folder), NAME)
    assert f"url      {hub.url}/{NAME}" in done.stdout
    assert "each with the hash that it has here" in done.stdout
    assert "names a base of this machine" in done.stderr


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def linked(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


README = "README.md"
DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "weights": ("model.safetensors", cut, "is truncated"),
    "config": ("config.json", cut, "is not valid JSON"),
    "gguf": ("model.gguf", lambda path: path.write_bytes(b"GGUF"), "damaged or no GGUF file"),
    "link": ("model.safetensors", linked, "has links for model.safetensors, which are not followed"),
    "card": (README, lambda path: path.write_bytes(b"\xff"), "README.md can't be read"),
    "metadata": (README, lambda path: path.write_text("---\na: [\n---\n"), "metadata .* can't be read"),
    "list": (
        README,
        lambda path: path.write_text("---\n- a\n---\n"),
        r"metadata .* is \['a'\]; expected keys",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_what_nobody_could_load_is_refused(damage: str, hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    """With the file; nothing is there afterwards."""
    folder = copied(tiny_base, tmp_path / "model")
    name, change, expected = DAMAGES[damage]
    change(folder / name)
    with pytest.raises(ModelError, match=expected):
        finetune.push(folder, NAME)
    assert hub.repositories == {}


def test_what_an_ended_command_left_is_refused(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    """A hidden folder whose weights may be half written."""
    with pytest.raises(ModelError, match="ended in the middle"):
        finetune.push(copied(tiny_base, tmp_path / ".merged.unfinished"), NAME)


def test_a_card_without_a_line_end_keeps_its_metadata(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    """And one that begins with a byte order mark."""
    folder = copied(tiny_base, tmp_path / "model")
    (folder / README).write_text("\ufeff---\nlicense: mit\n---", encoding="utf-8")
    finetune.push(folder, NAME)
    assert ModelCard(hub.model(NAME).files[README].decode()).data.license == "mit"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("POST .*/commit/", "The repository was made, and is empty"),
        ("GET .*/tree/", "was pushed as [0-9a-f]{40}, and could not be read back"),
    ],
)
def test_an_error_says_what_the_hub_has(fault: str, expected: str, hub: Hub, run: Run) -> None:
    """Which is not always what it had before."""
    hub.faults = [Fault(fault, 404, 99)]
    with pytest.raises(ModelError, match=expected):
        finetune.push(run, NAME)


def test_an_export_has_its_base_in_the_card_and_no_folders(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    """With the licence of a base of the hub; what else names folders of this machine is said."""
    adapter = tmp_path / "adapter"
    make_adapter(tiny_base, adapter)
    finetune.export(adapter, tmp_path / "out", format="gguf", verify="none")
    notes = finetune.push(tmp_path / "out", NAME).notes
    assert notes == ("folders of this machine are named in export.json",)
    assert str(tmp_path) not in hub.model(NAME).files[README].decode()
    assert f"- base: {tiny_base.name}" in hub.model(NAME).files[README].decode()
    hub.add("me/tiny", tiny_base, licence="llama3.2")
    finetune.export("me/tiny", tmp_path / "exported", format="gguf", verify="none")
    finetune.push(tmp_path / "exported", f"{NAME}-gguf")
    card = ModelCard(hub.model(f"{NAME}-gguf").files[README].decode())
    assert (card.data.base_model, card.data.license) == ("me/tiny", "llama3.2")
    assert card.data.base_model_relation == "quantized"


def test_a_quantised_folder_is_said_to_be_one(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    """And is loaded by transformers, which reads such folders."""
    pytest.importorskip("compressed_tensors")
    hub.add("me/tiny", tiny_base, licence="llama3.2")
    options = {"format": "compressed", "quantize": "fp8", "verify": "none"}
    finetune.export("me/tiny", tmp_path / "exported", **options)
    finetune.push(tmp_path / "exported", f"{NAME}-fp8")
    card = ModelCard(hub.model(f"{NAME}-fp8").files[README].decode())
    assert (card.data.base_model_relation, card.data.library_name) == ("quantized", "transformers")


@pytest.mark.parametrize(("name", "expected"), [("tiny", "is no repository's name"), (NAME, "does not know")])
def test_what_cannot_be_pushed_is_not_exported(
    name: str, expected: str, hub: Hub, tiny_base: Path, tmp_path: Path, finetune_here: FinetuneHere
) -> None:
    """A name that is none, a token that the hub doesn't know: said before the work."""
    hub.faults = [Fault("GET /api/whoami", 401, 9)]
    words = ("export", str(tiny_base), "--format", "gguf", "--output", str(tmp_path / "out"), "--push", name)
    assert expected in finetune_here(*words, code=2).stderr
    assert not (tmp_path / "out").exists()
