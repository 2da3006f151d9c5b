"""general_loss: how likely a text is that no recipe trains on, before and after."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.errors import FinetuneError
from finetune.evaluation.general_text import general_documents
from tests.support.cli import FinetuneHere
from tests.support.processes import start
from tests.support.recipes import MakeRecipe

TEXT = "The sky is blue.\nIt was so yesterday.\n\n\nTwo lamps, please.\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "general.txt"
    path.write_text(TEXT)
    return path


def test_it_is_the_mean_loss_of_the_paragraphs_tokens(
    finetune_here: FinetuneHere, make_recipe: MakeRecipe, tiny_base: Path, text: Path, tmp_path: Path
) -> None:
    """That of transformers' logits; the summary's and the evaluation's are one, with a base to compare."""
    recipe = make_recipe(
        train={"precision": "fp32", "max_steps": 3, "learning_rate": 1e-2},
        evaluate={"metrics": ["general_loss"], "general_text": str(text), "rows_in_training": 2},
    )
    run = start(recipe)
    found = json.loads(finetune_here("evaluate", str(run.path), "--compare", "base", "--json").stdout)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    sums = counts = 0.0
    for paragraph in ("The sky is blue.\nIt was so yesterday.", "Two lamps, please."):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(paragraph, add_special_tokens=False)]])
        with torch.no_grad():
            sums += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        counts += ids.shape[1] - 1
    before = found["metrics"]["general_loss"]["base"]["value"]
    assert before == pytest.approx(sums / counts, rel=1e-5)
    after = found["metrics"]["general_loss"]["value"]
    assert after != pytest.approx(before, rel=1e-4)
    assert run.read_summary()["metrics"]["general_loss"]["value"] == pytest.approx(after, rel=1e-5)
    logged = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert logged[0]["eval/general_loss"] == pytest.approx(before, rel=1e-5)


def test_our_own_text_is_there(tiny_base: Path) -> None:
    """Without a file; each paragraph is a document, and long ones are several."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    found = general_documents(None, tokenizer, 256)
    assert len(found) > 14
    assert max(len(document.token_ids) for document in found) <= 256
    assert all(document.supervised_tokens == len(document.token_ids) - 1 for document in found)
    assert len({document.place for document in found}) == len(found)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe", "can't be read"), (b"\n \n", "has no paragraph of two tokens")]
)
def test_a_file_that_is_no_text_is_refused(
    tmp_path: Path, tiny_base: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(FinetuneError, match=message):
        general_documents(str(path), AutoTokenizer.from_pretrained(tiny_base), 256)
