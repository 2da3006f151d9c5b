"""Which files of a folder or glob are read: those held out by name are not trained on, those without a row
are counted."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.audit.audit import audit_lines, audit_of
from data_prep.audit.html_report import audit_page
from data_prep.config import DataSection
from data_prep.errors import DataError
from data_prep.files import Use, find_files, left_out_files, problem_with, says_held_out, unread_files
from data_prep.preparation import PreparedData, prepare
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.messages import hearing
from tests.unit.data_prep.rows import places, write

HELD_OUT = (
    "test", "testing", "tests", "valid", "validation", "val", "eval", "evaluation", "dev", "held_out",
    "heldout", "holdout", "test-00000-of-00001", "validation_2", "my.dev", "dev-small", "TEST", "Test",
    "mySet.Test", "TestSet", "test2024", "01test", "a test", "squad_dev_v2", "train_test", "data.test.part1",
    "devset", "valSplit",
)  # fmt: skip
FOR_TRAINING = (
    "train", "contest", "devices", "latest", "attestation", "validated", "invalid", "interval", "evaluate",
    "medieval", "develop", "devops", "protest", "testament", "value", "part-0000", "rows", "fastest", "dévs",
)  # fmt: skip


def names(path: Path, use: Use | None) -> list[str]:
    return [file.name for file in find_files(path, use)]


def touch(folder: Path, *files: str) -> Path:
    """A folder with a row in each of these files."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, [{"instruction": name, "output": "ho"}])
    return folder


@pytest.mark.parametrize("name", [*HELD_OUT, *FOR_TRAINING])
@pytest.mark.parametrize("ending", [".jsonl", ".csv.gz"])
def test_names_that_say_so(name: str, ending: str) -> None:
    """A whole word says that a file is held out, in any case, beside digits and in compound names; a part of
    a word doesn't."""
    assert says_held_out(name + ending) == (name in HELD_OUT)


def test_a_folder(tmp_path: Path) -> None:
    """To train on are the other files, to evaluate on those held out; without a use, as for a digest, all of
    them."""
    folder = touch(tmp_path / "data", "train.jsonl", "extra.jsonl", "test.jsonl", "dev.jsonl")
    train, held = ["data/extra.jsonl", "data/train.jsonl"], ["data/dev.jsonl", "data/test.jsonl"]
    for path in (folder, folder / "*", folder / "*.jsonl"):
        assert (names(path, "train"), left_out_files(path, "train")) == (train, held)
        assert (names(path, "evaluation"), left_out_files(path, "evaluation")) == (held, train)
        assert names(path, None) == sorted(train + held)


def test_a_folder_without_such_names(tmp_path: Path) -> None:
    """It is read whole for either use."""
    folder = touch(tmp_path / "test", "train.jsonl", "contest.jsonl")
    for use in ("train", "evaluation", None):
        assert names(folder, use) == ["test/contest.jsonl", "test/train.jsonl"]
        assert left_out_files(folder, use) == []


def test_what_the_recipe_names_stays(tmp_path: Path) -> None:
    """A file's own path, a folder's, and a glob that says the word itself are taken as they are."""
    folder = touch(tmp_path / "data", "test.jsonl", "test-2.jsonl", "dev/a.jsonl", "b/test/c.jsonl")
    assert names(folder / "test.jsonl", "train") == ["test.jsonl"]
    assert names(folder / "dev", "train") == ["dev/a.jsonl"]
    assert names(folder / "test*.jsonl", "train") == ["data/test-2.jsonl", "data/test.jsonl"]
    assert names(folder / "**" / "test" / "*.jsonl", "train") == ["data/b/test/c.jsonl"]


def test_folders_inside(tmp_path: Path) -> None:
    """A folder's name on the way says it as well as the file's."""
    folder = touch(
        tmp_path / "val", "train/a.jsonl", "test/b.jsonl", "x/dev-clean/c.jsonl", "contest/d.jsonl"
    )
    assert names(folder / "**" / "*.jsonl", "train") == ["val/contest/d.jsonl", "val/train/a.jsonl"]
    assert names(folder / "**" / "*.jsonl", "evaluation") == ["val/test/b.jsonl", "val/x/dev-clean/c.jsonl"]


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    """Where every file is held out, training is refused with the way out; evaluating is not."""
    folder = touch(tmp_path / "data", "test.jsonl", "dev.jsonl")
    said = problem_with(folder, "train")
    assert said is not None
    assert "says that it is held out (data/dev.jsonl, data/test.jsonl)" in said
    assert "give its own path" in said
    assert problem_with(folder, "evaluation") is None


def prepared(
    tokenizer: PreTrainedTokenizerFast, train: Path, evaluation: Path | None = None, **options: Any
) -> PreparedData:
    section: dict[str, Any] = {"train": [{"path": str(train), "format": "alpaca"}]}
    if evaluation is not None:
        section["evaluation"] = {"sources": [{"path": str(evaluation), "format": "alpaca"}]}
    cache = options.pop("cache", None)
    return prepare(DataSection.model_validate(section | options), tokenizer, seed=0, cache=cache)


def test_one_folder_for_both_uses(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Each use takes its own files of it, and says which it left out; in lines, JSON and page, out of the
    cache too."""
    folder = touch(tmp_path / "data", "train.jsonl", "test.jsonl")
    for _ in range(2):
        data = prepared(tokenizer, folder, folder, cache=tmp_path / "cache")
        assert places(data.train) == ["data/train.jsonl:1"]
        assert places(data.evaluation) == ["data/test.jsonl:1"]
        assert [place for place, _ in data.evaluation_rows] == ["data/test.jsonl:1"]
        audit = audit_of(
            DataSection.model_validate({"train": [{"path": str(folder), "format": "alpaca"}]}),
            data,
            tokenizer,
            seed=0,
        )
        lines = audit_lines(audit)
        assert any(
            "their names say that they are held out" in line and line.endswith(": data/test.jsonl")
            for line in lines
        )
        assert any(
            "other files' names say that they are held out" in line and "data/train.jsonl" in line
            for line in lines
        )
        sources = audit.as_dict()["sources"]
        assert [source["left_out_files"] for source in sources] == [["data/test.jsonl"], ["data/train.jsonl"]]
        page = audit_page(audit, "x")
        assert page.count("Files that are not for this use") == 2
    assert data.from_cache


def test_a_file_that_is_renamed_is_prepared_again(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The cache knows which files were for training: by their names, and by what a glob asks for."""
    folder = touch(tmp_path / "data", "train.jsonl", "more.jsonl", "test.jsonl")
    assert len(prepared(tokenizer, folder / "*", cache=tmp_path / "cache").train) == 2
    (folder / "more.jsonl").rename(folder / "more-dev.jsonl")
    assert len(prepared(tokenizer, folder / "*", cache=tmp_path / "cache").train) == 1
    assert len(prepared(tokenizer, folder / "*t*", cache=tmp_path / "cache").train) == 1
    touch(folder, "test/x.jsonl", "contest/x.jsonl")
    assert len(prepared(tokenizer, folder / "*tes*" / "x.jsonl", cache=tmp_path / "cache").train) == 1
    assert len(prepared(tokenizer, folder / "*test*" / "x.jsonl", cache=tmp_path / "cache").train) == 2


def test_an_earlier_run_reads_what_it_read(tmp_path: Path, base: Path) -> None:
    """By preparation 2 every file of a folder is trained on, and the digest of a folder is what it was
    then."""
    folder = touch(tmp_path / "data", "train.jsonl", "test.jsonl")
    then, now = prepared(load_tokenizer(base, preparation=2), folder), prepared(load_tokenizer(base), folder)
    assert places(then.train) == ["data/test.jsonl:1", "data/train.jsonl:1"]
    assert places(now.train) == ["data/train.jsonl:1"]
    assert then.digests == now.digests


def test_what_an_earlier_version_prepared(tmp_path: Path, base: Path) -> None:
    """Where it is gone, a run of that version is told that its rows are read anew; where it is there, nothing
    is said."""
    folder, said = touch(tmp_path / "data", "train.jsonl"), list[str]()
    section = DataSection.model_validate({"train": [{"path": str(folder), "format": "alpaca"}]})
    for _ in range(2):
        with hearing(said.append):
            prepare(section, load_tokenizer(base, preparation=2), seed=0, cache=tmp_path / "cache")
    assert said == [
        "warning: the data that an earlier version prepared for this run are gone; this version prepares "
        "them anew",
    ]
    with hearing(said.append):
        prepare(section, load_tokenizer(base), seed=0, cache=tmp_path / "cache")
    assert len(said) == 1


def test_rows_that_are_not_what_was_prepared(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows that are read again for a metric and are other rows by then are an error, never left out in
    silence."""
    folder = touch(tmp_path / "data", "train.jsonl", "test.jsonl")
    data = prepared(tokenizer, folder, folder)
    write(folder / "test.jsonl", [{"instruction": "another", "output": "ho"}])
    with pytest.raises(
        DataError,
        match=r"data/test\.jsonl:1: the prepared data have this row, but it is read differently now",
    ):
        _ = data.evaluation_rows


def empty_parquet(path: Path) -> None:
    pq.write_table(pa.table({"instruction": pa.array([], pa.string())}), path)


def empty_arrow(path: Path) -> None:
    table = pa.table({"instruction": pa.array([], pa.string())})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


EMPTY: dict[str, Any] = {
    "p01.jsonl": b"", "p02.jsonl": b"\n\n", "p03.jsonl": "\ufeff".encode(), "p04.jsonl.gz": b"",
    "p05.jsonl.gz": gzip.compress(b""), "p06.jsonl.zst": b"",
    "p07.csv": b"", "p08.csv": b"instruction,output\n", "p09.tsv.gz": gzip.compress(b"instruction\n"),
    "p10.json": b"", "p11.json": b" \n", "p12.json": b"[]", "p13.txt": b"\n \n", "p14.parquet": b"",
    "p15.parquet": empty_parquet, "p16.arrow": b"", "p17.arrow": empty_arrow,
}  # fmt: skip
MARKS = ("_SUCCESS", "_committed_123", ".p00.jsonl.crc", "p00.jsonl.crc", "_started_123")


@pytest.mark.parametrize("pattern", ["", "*", "p*"])
def test_files_without_a_row(pattern: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Among others they are counted and said, whatever their kind; marks that programs leave beside them are
    passed over."""
    folder = touch(tmp_path / "out", "p00.jsonl")
    for name, made in EMPTY.items():
        made(folder / name) if callable(made) else (folder / name).write_bytes(made)
    for name in MARKS:
        (folder / name).write_bytes(b"x")
    data = prepared(tokenizer, folder / pattern)
    assert places(data.train) == ["out/p00.jsonl:1"]
    [source] = data.report.sources
    assert source.empty_files == [f"out/{name}" for name in EMPTY]
    audit = audit_of(
        DataSection.model_validate({"train": [{"path": str(folder), "format": "alpaca"}]}),
        data,
        tokenizer,
        seed=0,
    )
    assert any(
        line.startswith(f"  files without a row ({len(EMPTY)}): out/p01.jsonl, ")
        for line in audit_lines(audit)
    )
    assert audit.as_dict()["sources"][0]["empty_files"] == source.empty_files
    assert "Files without a row" in audit_page(audit, "x")
    if not pattern:
        assert unread_files(folder) == sorted(name for name in MARKS if not name.startswith("."))


def test_no_row_in_any_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Where nothing is left the folder is refused, with the first file and why; so is a file by itself."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"out/a\.jsonl holds no rows"):
        prepared(tokenizer, folder)
    (folder / "b.csv").write_text("instruction,output\n")
    with pytest.raises(
        DataError, match=r"none of the 2 files of .*out has a row: out/a\.jsonl holds no rows"
    ):
        prepared(tokenizer, folder, on_bad_row="skip")
    with pytest.raises(DataError, match=r"b\.csv holds no rows"):
        prepared(tokenizer, folder / "b.csv")


def test_empty_files_of_a_stream(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A stream passes over them as often as it comes by, and counts each once."""
    from data_prep.epoch.stream import Position, Stream

    folder = touch(tmp_path / "out", "a.jsonl")
    (folder / "b.jsonl").write_bytes(b"")
    section = {"train": [{"path": str(folder), "format": "alpaca"}], "streaming": {"buffer_rows": 4}}
    stream = Stream(DataSection.model_validate(section), tokenizer, seed=0)
    buffers = stream.buffers(Position())
    assert [len(next(buffers).packs) for _ in range(3)] == [1, 1, 1]
    assert stream.report.sources[0].empty_files == ["out/b.jsonl"]


def saved(folder: Path) -> Path:
    """What datasets' save_to_disk makes of two splits, with a copy that a later map left beside the first
    one's rows."""
    import datasets

    def rows(*names: str) -> Any:
        return datasets.Dataset.from_list([{"instruction": name, "output": "ho"} for name in names])

    datasets.DatasetDict({"train": rows("a", "b"), "test": rows("c")}).save_to_disk(folder)
    datasets.load_from_disk(folder / "train").map(lambda row: {"output": "no"})
    assert list((folder / "train").glob("cache-*.arrow"))
    return folder


def test_saved_data_sets(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What save_to_disk wrote is read, one split or several, each for its use, and nothing that lies beside
    the rows."""
    folder = saved(tmp_path / "saved")
    data = prepared(tokenizer, folder, folder)
    assert [place.partition(" ")[0] for place in places(data.train)] == [
        "saved/train/data-00000-of-00001.arrow"
    ] * 2
    assert [place.partition(" ")[0] for place in places(data.evaluation)] == [
        "saved/test/data-00000-of-00001.arrow"
    ]
    for path, count in ((folder / "train", 2), (folder / "train" / "*.arrow", 2), (folder / "test", 1)):
        assert len(prepared(tokenizer, path).train) == count


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (("README.md", "dataset_infos.json", "data/train-0.jsonl", "data/test-0.jsonl"), "{folder}/data"),
        (("README.md", "data/en/train.jsonl"), "{folder}/data/en"),
        (("README.md", "de/a.jsonl", "en/a.jsonl"), "{folder}/de"),
        (("README.md", "de/a.jsonl", "en/a.jsonl"), "{folder}/**/*.jsonl"),
        (("dataset_dict.json", "train/a.parquet.gz", "x/b.parquet.gz"), "{folder}/**/*.parquet.gz"),
    ],
)
def test_a_folder_with_its_data_further_down(files: tuple[str, ...], line: str, tmp_path: Path) -> None:
    """The message names a path to write in its place, and that path has files to train on."""
    folder = touch(tmp_path / "clone", *files)
    path = line.format(folder=folder)
    said = problem_with(folder, "train")
    assert said is not None
    assert path in said
    assert problem_with(path, "train") is None
    assert names(Path(path), "train")


def test_files_about_data_are_none(tmp_path: Path) -> None:
    """The JSON that `datasets` and its hub put beside the data is not read with them; named by itself it is a
    file like any."""
    folder = touch(tmp_path / "clone", "train.jsonl")
    (folder / "dataset_infos.json").write_text(json.dumps({"default": {}}))
    assert names(folder, "train") == names(folder / "*", "train") == ["clone/train.jsonl"]
    assert names(folder / "dataset_infos.json", "train") == ["dataset_infos.json"]
