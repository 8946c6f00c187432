"""Files become rows, one at a time: JSON Lines, a JSON list, CSV and Parquet, told apart by content.

A row knows where it stands ("line 7"), so that every error can say so. What the columns mean is the readers' business.
"""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from ..errors import DataError

Kind = Literal["jsonl", "json", "csv", "parquet", "text", "folder", "missing"]
GREATEST_LINE = 2**24  # characters; an example of this length fits no context
_UNDECODED = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that isn't UTF-8
_MAGIC = (
    (b"\x1f\x8b", "gzip-compressed; unpack it first (gunzip)"),
    (b"PK\x03\x04", "a ZIP archive or an Excel sheet; unpack it, or export the sheet as CSV"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"SQLite format 3", "a SQLite database; export the table as CSV"),
    (b"\x80\x04", "a Python pickle, which is never read; export it as JSON Lines"),
    (b"\x80\x05", "a Python pickle, which is never read; export it as JSON Lines"),
    (b"ARROW1", "an Arrow file; save it as Parquet"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it first (unzstd)"),
)


class Row(NamedTuple):
    """One row, and where it stands: "line 7", "row 12", "item 3"."""

    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What a path leads to: the kind by content, the columns of its first row, or the files of a folder."""

    given: str
    path: Path
    kind: Kind
    columns: tuple[str, ...] = ()
    first: Mapping[str, Any] = field(default_factory=dict[str, Any])
    files: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """A short name for the data: the file and its folder, not the whole path."""
        parts = self.path.parts[-2:] if self.kind != "missing" else (self.given,)
        return "/".join(part for part in parts if part not in ("/", "\\"))

    def has(self, *columns: str) -> bool:
        """Whether every one of these columns is there, spelled exactly so."""
        return set(columns) <= set(self.columns)

    def told(self) -> str:
        """The kind and the columns in words, for errors."""
        if self.kind == "folder":
            return f"a folder with {_listed(self.files) or 'no files'}"
        names = {"jsonl": "JSON Lines", "json": "a JSON list", "csv": "CSV", "parquet": "Parquet", "text": "plain text"}
        kind = names.get(self.kind, "nothing")
        return f"{kind} with the columns {_listed(self.columns)}" if self.columns else kind


def look(given: str) -> Found:
    """What is at a path. Raises `DataError` for an empty, binary or compressed file."""
    path = Path(given)
    try:
        if path.is_dir():
            return Found(given, path, "folder", files=tuple(sorted(p.name for p in path.iterdir())))
        if not path.exists():
            return Found(given, path, "missing")
        if not path.is_file():
            raise DataError(
                f"{given} is a device or a pipe; expected a file or a folder. Save the data to a file first."
            )
        with path.open("rb") as file:
            head = file.read(65536)
    except OSError as problem:
        raise DataError(f"{given} can't be read: {problem.strerror or problem}.") from problem
    found = Found(given, path, _kind(given, path, head))
    return found if found.kind == "text" else look_at(found)


def look_at(found: Found) -> Found:
    """A table with its columns and first row filled in. Raises `DataError` for one without rows."""
    row = next(rows(found), None)
    if row is None:
        raise DataError(f"{found.given} has no rows; expected at least one example of each class.")
    columns = parquet_columns(found.path) if found.kind == "parquet" else row.values
    return replace(found, columns=tuple(columns), first=row.values)


def rows(found: Found, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file, read as they are asked for; `columns` reads no others of a Parquet file."""
    if found.kind == "jsonl":
        return _jsonl(found)
    if found.kind == "json":
        return _json(found)
    if found.kind == "csv":
        return _csv(found)
    if found.kind == "parquet":
        return _parquet(found, columns)
    raise DataError(f"{found.given} is {found.told()}; expected a table: JSON Lines, a JSON list, CSV or Parquet.")


def lines(path: Path, *, newline: str = "\n") -> Iterator[tuple[int, str]]:
    """A text file's lines with their numbers, a byte order mark dropped.

    Raises `DataError` with the line where it isn't UTF-8 or is longer than any example can be.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as file:
        for number in itertools.count(1):
            line = file.readline(GREATEST_LINE + 1)
            if not line:
                return
            if len(line) > GREATEST_LINE:
                raise DataError(
                    f"{path}, line {number} is longer than {GREATEST_LINE} characters; expected one example per line."
                    " Is a line break missing, or is it another format?"
                )
            if not line.isascii() and (bad := _UNDECODED.search(line)) is not None:
                byte = ord(bad.group()) - 0xDC00
                guess = bytes([byte]).decode("cp1252", errors="replace")
                raise DataError(
                    f"{path}, line {number}, column {bad.start() + 1} is not UTF-8 (byte 0x{byte:02x}, which is"
                    f" {guess!r} in Windows-1252); expected UTF-8 throughout. Save the file as UTF-8 (iconv -f"
                    " WINDOWS-1252 -t UTF-8)."
                )
            yield number, line


def parse(text: str, found: Found, where: str = "") -> Any:
    """The JSON value of a text. Raises `DataError` with the line, also for what Python lets pass and JSON doesn't.

    That is NaN, a key twice, and half of a surrogate pair, which is no character and can't be written again.
    """
    try:
        value = json.loads(text, parse_constant=_not_a_number, object_pairs_hook=_distinct)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as problem:
        raise DataError(
            f"{found.given}{where and f', {where}'} holds half of a surrogate pair (\\ud83d without its second half,"
            " say); expected whole characters. The text was cut or escaped wrongly; write it again."
        ) from problem
    except (json.JSONDecodeError, RecursionError, _NotAllowed) as problem:
        if not where:
            where = f"line {problem.lineno}" if isinstance(problem, json.JSONDecodeError) else "the list"
        raise DataError(_not_json(found, where, text, problem)) from problem
    return value


def arrow() -> Any:
    """pyarrow.parquet. Raises `DataError` that says what to install where it is missing."""
    try:
        import pyarrow.parquet as module
    except ImportError as problem:
        raise DataError(
            "reading Parquet needs pyarrow, which is not installed: pip install 'steerlab[data]'."
            " CSV and JSON Lines are read without it."
        ) from problem
    return module


def parquet_columns(path: Path) -> list[str]:
    """The columns of a Parquet file. Raises `DataError` where it is damaged or names a column twice."""
    module = arrow()
    try:
        names = [str(name) for name in module.read_schema(path).names]
    except (OSError, ValueError) as problem:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(_damaged(path, problem)) from problem
    _unique(names, f"{path}")
    return names


def _kind(given: str, path: Path, head: bytes) -> Kind:
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, told in _MAGIC:
        if head.startswith(magic):
            raise DataError(f"{given} is {told}.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DataError(f"{given} is empty ({len(head)} bytes); expected at least one example of each class.")
    if b"\0" in head:
        raise DataError(
            f"{given} is binary, or text in UTF-16 or UTF-32; expected UTF-8 text or Parquet. Save it as UTF-8."
        )
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return "csv"
    if text.startswith(b"{") and suffix != ".txt":
        return "jsonl"
    if text.startswith(b"[") and suffix != ".txt":
        return "json"
    return "text"


def _jsonl(found: Found) -> Iterator[Row]:
    for number, line in lines(found.path):
        if not line.strip():
            continue
        where = f"line {number}"
        yield Row(where, _object(parse(line, found, where), found, where))


def _json(found: Found) -> Iterator[Row]:
    value = parse("".join(line for _, line in lines(found.path)), found)
    if not isinstance(value, list):
        raise DataError(f"{found.given} holds {type(value).__name__}; expected a list of objects.")
    for number, item in enumerate(cast("list[Any]", value), 1):
        yield Row(f"item {number}", _object(item, found, f"item {number}"))


def _csv(found: Found) -> Iterator[Row]:
    source = (line for _, line in lines(found.path, newline=""))
    first = next((line for _, line in lines(found.path, newline="") if line.strip()), "")
    delimiter = max("\t;,", key=first.count) if any(c in first for c in "\t;,") else ","
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start, end = 1, 0  # the lines of the row: a quoted cell may hold line breaks
    try:
        for cells in reader:
            start, end = end + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _unique(header, f"{found.given}, line {start}")
                continue
            where = f"line {start}"
            if len(cells) != len(header):
                more = "more" if len(cells) > len(header) else "fewer"
                raise DataError(
                    f"{found.given}, {where}: the row has {len(cells)} cells, {more} than the {len(header)} columns of"
                    f" the header ({_listed(header)}). Quote a text that contains {delimiter!r}, or add the missing"
                    " cells."
                )
            yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as problem:
        raise DataError(
            f"{found.given}, line {end + 1} is not valid CSV: {problem}. A quote that is opened and never"
            " closed is"
            ' the usual reason; write a quote inside a quoted text twice ("").'
        ) from problem


def _parquet(found: Found, columns: Sequence[str] | None) -> Iterator[Row]:
    module = arrow()
    number = 0
    try:
        with module.ParquetFile(found.path) as file:
            for batch in file.iter_batches(batch_size=1024, columns=None if columns is None else list(columns)):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", values)
    except (OSError, ValueError) as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(_damaged(found.path, problem)) from problem


class _NotAllowed(ValueError):
    """What Python's parser lets pass and JSON doesn't: NaN, or a key twice."""


def _not_a_number(text: str) -> float:
    raise _NotAllowed(f"{text} is not a JSON value; leave the field out, or write null")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotAllowed(f"it has the field {twice!r} twice; keep one of them")
    return found


def _not_json(found: Found, where: str, text: str, problem: Exception) -> str:
    hint = ""
    if text.lstrip().startswith("{'"):
        hint = " Strings and keys stand in double quotes, not single ones (write it with json.dumps)."
    elif text.strip() == "{":
        hint = " Each row stands on one line; a JSON object over several lines is not JSON Lines."
    elif text.lstrip().startswith("[") and found.kind == "jsonl":
        hint = " A file is either a JSON list or one object per line, not both."
    reason = problem.msg if isinstance(problem, json.JSONDecodeError) else str(problem)
    shown = text.strip()[:60]
    return f"{found.given}, {where} is not valid JSON ({reason}): {shown!r}.{hint}"


def _object(value: Any, found: Found, where: str) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    shown = json.dumps(value, ensure_ascii=False)[:60]
    raise DataError(
        f"{found.given}, {where} is {shown}; expected an object with named fields."
        " (Lists of plain strings are read two at a time: positive.json:negative.json.)"
    )


def _unique(names: Sequence[str], where: str) -> None:
    seen: dict[str, str] = {}
    for place, name in enumerate(names, 1):
        if not name:
            raise DataError(
                f"{where}: column {place} of the header has no name ({_listed(names)}); name it or remove it."
            )
        key = normal(name)
        if key in seen:
            raise DataError(f"{where}: the header has the column {name!r} twice ({_listed(names)}); keep one of them.")
        seen[key] = name


def normal(column: str) -> str:
    """A column's name as it is compared: lower case, with underscores."""
    return re.sub(r"[\s\-.]+", "_", column.strip().lower())


def absent(found: Found) -> DataError:
    """The error for a path that leads nowhere, with the nearest name that does."""
    beside = found.path.parent
    if not beside.is_dir():
        return DataError(f"there is no file {found.given}, nor a folder {beside}. Check the path.")
    names = sorted(p.name for p in beside.iterdir() if not p.name.startswith("."))
    close = difflib.get_close_matches(found.path.name, names, n=1, cutoff=0.6)
    told = f"Did you mean {close[0]!r}?" if close else f"That folder holds {_listed(names) or 'nothing'}."
    return DataError(f"there is no file or folder {found.given}. {told}")


def _damaged(path: Path, problem: Exception) -> str:
    first = str(problem).strip().splitlines()[0][:200]
    return f"{path} ({path.stat().st_size} bytes) is not a readable Parquet file: {first} Fetch or write it again."


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
