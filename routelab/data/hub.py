"""Any text: a local file or folder, or a data set of the Hugging Face hub by its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from routelab.core.errors import UsageError, unknown
from routelab.data.base import DataSet, holds
from routelab.data.text import SEPARATOR, Stream, check_shares, text_data

_TABLES = (".jsonl", ".parquet")
_ROWS = 1024

Row = tuple[str, bytes]
"""A document's domain ("" where there are none), and its text in UTF-8."""


@holds("text")
def hub(
    *,
    path: str,
    text: str = "text",
    domain: str | None = None,
    config: str | None = None,
    window: int = 256,
    validation: float = 0.05,
    test: float = 0.1,
) -> DataSet:
    """Next byte of any text: `data.path` is a text, JSONL or Parquet file, a folder of those, or a data set's name on the hub.

    A document is a row of a table (its column `text`), a file of a folder, or a chunk between blank lines of a single text
    file. Whole documents are held out for `validation` and `test` by a hash of their content, so that neither order nor file
    names matter, and equal documents are never parted. A column `domain` (of tables) names each document's domain; a window
    belongs to one. `config` chooses a configuration of a hub data set, all of whose splits are read; the hub needs the extra
    `hub` and a network, or what an earlier call left in its cache.
    """
    check_shares(validation, test)
    place = Path(path).expanduser()
    if place.exists():
        rows, source = local_rows(place, text, domain), f"{path} (local)"
    else:
        rows, source = (
            _hub_rows(path, config, text, domain),
            f"{path}{f' ({config})' if config else ''} of the Hugging Face hub",
        )
    parts: dict[str, tuple[list[bytes], list[bytes], list[bytes]]] = {}
    for name, given in rows:
        content = given.replace(SEPARATOR, b"").replace(b"\r\n", b"\n")
        if content.strip():
            kept = parts.setdefault(name, ([], [], []))
            kept[split_of(content, validation, test)].append(content)
    if not parts:
        raise UsageError(f"data.path={path!r} holds no text")
    for split, number in (("train", 0), ("validation", 1), ("test", 2)):
        if not any(kept[number] for kept in parts.values()):
            documents = sum(len(texts) for kept in parts.values() for texts in kept)
            raise UsageError(
                f"data.path={path!r} has {documents} documents, none of which falls into the {split} split; "
                f"it needs more documents, or a larger data.validation and data.test"
            )
    streams = {name: (_joined(kept[0]), _joined(kept[1]), _joined(kept[2])) for name, kept in sorted(parts.items())}
    made = text_data("hub", streams, window, source)
    return made if domain is not None else _without_domains(made)


def split_of(content: bytes, validation: float, test: float) -> int:
    """0 train, 1 validation, 2 test: by the content's SHA-256, read as a number from 0 to 1."""
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    return 2 if place < test else 1 if place < test + validation else 0


def local_rows(place: Path, text: str, domain: str | None) -> Iterator[Row]:
    """The documents of a file or folder."""
    try:
        if place.is_dir():
            yield from _folder_rows(place, text, domain)
        elif place.suffix in _TABLES:
            yield from _table_rows(place, text, domain)
        else:
            _no_domain(place, domain)
            yield from (("", chunk) for chunk in _chunks(place.read_bytes()))
    except OSError as error:
        raise UsageError(f"data.path={str(place)!r} cannot be read: {error.strerror or error}") from None


def _folder_rows(folder: Path, text: str, domain: str | None) -> Iterator[Row]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        if path.suffix in _TABLES:
            yield from _table_rows(path, text, domain)
            continue
        content = path.read_bytes()
        # A zero byte says that a file is no text.
        if SEPARATOR not in content:
            _no_domain(path, domain)
            yield "", content


def _table_rows(path: Path, text: str, domain: str | None) -> Iterator[Row]:
    if path.suffix == ".jsonl":
        yield from _rows(_json_lines(path), text, domain, str(path))
        return
    try:
        from pyarrow import lib, parquet
    except ImportError:
        raise UsageError(
            f"data.path={str(path)!r} is a Parquet file, which needs the package pyarrow: pip install pyarrow"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in (text, domain):
                if column is not None and column not in names:
                    raise _no_column(column, names, str(path), "text" if column == text else "domain")
            wanted = [text] if domain is None else [text, domain]
            batches = (batch.to_pylist() for batch in file.iter_batches(_ROWS, columns=wanted))
            yield from _rows((row for batch in batches for row in batch), text, domain, str(path))
    except lib.ArrowInvalid as error:
        raise UsageError(f"data.path={str(path)!r} is no readable Parquet file: {str(error).splitlines()[0]}") from None


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UsageError(f"data.path={str(path)!r}: line {number} is not a JSON object")
            yield row


def _rows(rows: Iterable[Mapping[str, Any]], text: str, domain: str | None, where: str) -> Iterator[Row]:
    for row in rows:
        for key, column in (("text", text), ("domain", domain)):
            if column is not None and column not in row:
                raise _no_column(column, row, where, key)
        if row[text] is not None:
            yield ("" if domain is None else str(row[domain])), str(row[text]).encode("utf-8", "replace")


def _no_column(column: str, names: Iterable[str], where: str, key: str) -> UsageError:
    return unknown(f"column of {where!r}: data.{key} names", column, [str(name) for name in names])


def _no_domain(path: Path, domain: str | None) -> None:
    if domain is not None:
        raise UsageError(f"data.domain={domain!r} is a column of JSONL or Parquet; {str(path)!r} has no columns")


def _chunks(content: bytes) -> list[bytes]:
    """What lies between blank lines, a newline at its end."""
    lines = content.replace(b"\r\n", b"\n").split(b"\n")
    chunks: list[list[bytes]] = [[]]
    for line in lines:
        if line.strip():
            chunks[-1].append(line)
        elif chunks[-1]:
            chunks.append([])
    return [b"\n".join(chunk) + b"\n" for chunk in chunks if chunk]


def _hub_rows(path: str, config: str | None, text: str, domain: str | None) -> Iterator[Row]:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"data.path={path!r} is no local file or folder, and a name on the hub needs the extra `hub`: "
            f"pip install 'routelab[hub]'"
        ) from None
    try:
        found = datasets.load_dataset(path, config)
    except Exception as error:
        # Whatever its network, its cache or the hub had to say, and under many types.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"data.path={path!r} is no local file or folder, and the hub did not give it: {lines[0]}") from None
    for split in sorted(found):
        yield from _rows(found[split], text, domain, f"{path}, split {split}")


def _joined(texts: list[bytes]) -> Stream:
    """One stream, in an order that depends on the contents only. Equal documents are one unit."""
    ordered = sorted((hashlib.sha256(content).digest(), content) for content in texts)
    return Stream.join(ordered)


def _without_domains(made: DataSet) -> DataSet:
    train, validation, test = (replace(part, domain=None) for part in (made.train, made.validation, made.test))
    return replace(made, train=train, validation=validation, test=test, domain_names=())
