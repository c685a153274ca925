"""Any text: local files of four kinds, split by content, and one-sentence errors where there is no network."""

import json
import sys
import types

import pytest
import torch

from routelab.core.errors import UsageError
from routelab.data.base import load
from routelab.data.hub import split_of

DOCUMENTS = [f"Document {n}. " + f"It says {n * n} and {n * 7}. " * 4 + "\n" for n in range(300)]
OPTIONS = {"window": 32, "validation": 0.1, "test": 0.2}


def write(kind, folder, documents=DOCUMENTS, **columns):
    if kind == "text":
        path = folder / "all.txt"
        path.write_text("\n".join(documents))
    elif kind == "folder":
        path = folder / "texts"
        (path / "deep").mkdir(parents=True)
        for number, document in enumerate(documents):
            (path / ("deep" if number % 2 else ".") / f"{number}.md").write_text(document)
        (path / ".hidden").write_text("HIDDEN " * 1000)
        (path / "image.bin").write_bytes(b"BINARY\0" * 1000)
    elif kind == "jsonl":
        path = folder / "rows.jsonl"
        rows = [{"text": d, **{name: values[n] for name, values in columns.items()}} for n, d in enumerate(documents)]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet files are read by pyarrow")
        from pyarrow import parquet

        path = folder / "rows.parquet"
        parquet.write_table(pyarrow.table({"text": documents, **columns}), path)
    return str(path)


def texts(split):
    """The documents that windows hold whole or in part, by their numbers."""
    import re

    flat = torch.cat([split.inputs.flatten(), split.targets[-1:, -1]])
    return {int(found) for found in re.findall(rb"Document (\d+)\. ", bytes(flat.tolist()))}


@pytest.mark.parametrize("kind", ["text", "folder", "jsonl", "parquet"])
def test_every_kind_gives_the_same_documents(kind, tmp_path):
    data = load("hub", path=write(kind, tmp_path), **OPTIONS)
    plain = load("hub", path=write("jsonl", tmp_path), **OPTIONS)
    assert data.digest == plain.digest
    assert data.task.kind == "language"
    assert data.train.domain is None
    assert data.domain_names == ()


def test_documents_are_held_out_whole(tmp_path):
    data = load("hub", path=write("jsonl", tmp_path), **OPTIONS)
    train, validation, test = (texts(split) for split in (data.train, data.validation, data.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train | validation | test) >= 295  # the last of a split may end before its number
    assert 0.12 < len(test) / 300 < 0.28
    for number, document in enumerate(DOCUMENTS):
        where = (train, validation, test)[split_of(document.encode(), 0.1, 0.2)]
        assert number in where or number not in train | validation | test


def test_splits_do_not_depend_on_order_or_names(tmp_path):
    first = load("hub", path=write("jsonl", tmp_path), **OPTIONS)
    (tmp_path / "again").mkdir()
    second = load("hub", path=write("jsonl", tmp_path / "again", DOCUMENTS[::-1]), **OPTIONS)
    assert first.digest == second.digest
    # Another document leaves all others where they are.
    more = load("hub", path=write("jsonl", tmp_path, [*DOCUMENTS, "Something else entirely. " * 5]), **OPTIONS)
    for a, b in ((first.train, more.train), (first.validation, more.validation), (first.test, more.test)):
        assert len(texts(a) ^ texts(b)) <= 1


def test_equal_documents_are_never_parted(tmp_path):
    data = load("hub", path=write("jsonl", tmp_path, DOCUMENTS[:100] * 3), **OPTIONS)
    assert not texts(data.train) & texts(data.test)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_domains_come_from_a_column(kind, tmp_path):
    names = ["odd" if n % 2 else "even" for n in range(300)]
    data = load("hub", path=write(kind, tmp_path, source=names), domain="source", **OPTIONS)
    assert data.domain_names == ("even", "odd")
    for number in (0, 1):
        part = data.train.select(data.train.domain == number)
        assert all(document % 2 == number for document in texts(part))


def test_another_text_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"body": document, "text": None}) + "\n" for document in DOCUMENTS))
    assert len(load("hub", path=str(path), text="body", **OPTIONS).train) > 100


def test_hub_names_are_read_through_datasets(tmp_path, monkeypatch):
    """The library itself needs a network; what is asked of it is this."""
    asked = []

    def load_dataset(path, name):
        asked.append((path, name))
        rows = [{"text": document} for document in DOCUMENTS]
        return {"train": rows[:200], "test": rows[200:]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    data = load("hub", path="someone/texts", config="small", **OPTIONS)
    assert asked == [("someone/texts", "small")]
    assert data.digest == load("hub", path=write("jsonl", tmp_path), **OPTIONS).digest
    assert "someone/texts (small)" in data.source


def test_errors_of_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"needs the extra `hub`: pip install 'routelab\[hub\]'"):
        load("hub", path="wikitext")

    def load_dataset(path, name):
        raise ConnectionError("Couldn't reach 'wikitext' on the Hub\nmore lines")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UsageError, match="the hub did not give it: Couldn't reach 'wikitext' on the Hub$"):
        load("hub", path="wikitext")


def test_errors_of_files(tmp_path):
    rows = write("jsonl", tmp_path)
    for options, message in (
        ({}, "data set 'hub' needs data.path"),
        ({"path": rows, "text": "txt"}, "data.text names 'txt'; did you mean 'text'"),
        ({"path": rows, "domain": "source"}, "data.domain names 'source'"),
        ({"path": write("text", tmp_path), "domain": "source"}, "has no columns"),
        ({"path": rows, "test": 0}, "validation=0.05 and test=0"),
        ({"path": rows, "window": 100_000}, "window=100000 is longer than the train split"),
    ):
        with pytest.raises(UsageError, match=message):
            load("hub", **options)
    (tmp_path / "one.txt").write_text("just one document")
    with pytest.raises(UsageError, match="has 1 documents, none of which falls into the"):
        load("hub", path=str(tmp_path / "one.txt"))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UsageError, match="holds no text"):
        load("hub", path=str(tmp_path / "empty.txt"))
    (tmp_path / "broken.jsonl").write_text('{"text": "x"}\n[1]\n')
    with pytest.raises(UsageError, match="line 2 is not a JSON object"):
        load("hub", path=str(tmp_path / "broken.jsonl"))


def test_errors_of_parquet(tmp_path):
    path = write("parquet", tmp_path)
    with pytest.raises(UsageError, match="data.text names 'txt'; did you mean 'text'"):
        load("hub", path=path, text="txt")
    (tmp_path / "broken.parquet").write_bytes(b"not a table at all")
    with pytest.raises(UsageError, match="is no readable Parquet file"):
        load("hub", path=str(tmp_path / "broken.parquet"))
