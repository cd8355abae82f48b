"""Image lists in text files: written by a run, or supplied by users."""

import codecs
import csv
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fastdarts.data.errors import DataError
from fastdarts.data.index import Index
from fastdarts.quoting import native, quoted, shortlist, unquoted

LINE_ENDS = re.compile(r"\r\n|\r|\n")
HEADING = re.compile(r"[A-Za-z_ ]+([,;\t][A-Za-z_ ]+)*")  # words without path, number or file extension
LABELLED = re.compile(r"(.*\S)\s+-?\d+")  # NAME LABEL
log = logging.getLogger(__name__)


def write_list(path: str | os.PathLike[str], index: Index, indices: Tensor) -> None:
    """Write the names of `indices`, relative to the index root, one per line (quoting.quoted). Raises OSError."""
    text = "".join(f"{quoted(index.files[i])}\n" for i in indices.tolist())
    Path(path).write_text(text, encoding="utf-8")


def read_list(path: str | os.PathLike[str], index: Index) -> Tensor:
    """Read a list written by write_list or by a user: int64 (N,), sorted; blank lines are skipped.

    Text is UTF-8, UTF-16 with a byte order mark, or Windows code page 1252. A line not in write_list's form is interpreted by
    _Names.readings and must resolve to exactly one image. Lines that begin with # are comments.
    Raises DataError if the list is unreadable, empty, repeats an image, or has a line that does not match one image of the
    index. The message shows the first such line and the expected form.
    """
    names = _Names(index)
    lines = lines_of(path)
    form = f"write one name relative to {index.root} in each line, as in {quoted(index.files[0])}"
    found: list[int] = []
    wrong: list[tuple[int, str]] = []  # (line number, reason)
    other: list[tuple[int, str]] = []  # (line number, line)
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        image = names.exact.get(line)
        if image is None and line and (image := names.exact.get(unquoted(line))) is None:
            if line.startswith("#") or (not found and not wrong and not other and HEADING.fullmatch(line.replace('"', ""))):
                continue
            images = names.meant(line)
            if len(images) != 1:
                many = f"may be {shortlist([index.files[i] for i in sorted(images)])}"
                wrong.append((number, f"{quoted(native(line))} {many if images else f'is not an image of {index.root}'}"))
                continue
            image = images.pop()
            other.append((number, line))
        if image is not None:
            found.append(image)
    if wrong:
        number, why = wrong[0]
        more = f" ({len(wrong)} of {len(found) + len(wrong)} names are wrong)" if len(wrong) > 1 else ""
        raise DataError(f"{path}, line {number}: {why}{more}; {form}")
    if not found:
        raise DataError(f"the file list {path} is empty: {form}")
    indices = torch.tensor(found).sort().values
    if len(twice := indices[1:][indices[1:] == indices[:-1]]):
        raise DataError(f"{path} lists an image twice: {shortlist([index.files[i] for i in twice.tolist()])}")
    if other:
        number, line = other[0]
        message = f"line {number}, {quoted(native(line))}, is {quoted(index.files[int(names.meant(line).pop())])}"
        log.info("%s: %d of %d names are spelled differently: %s", path, len(other), len(found), message)
    return indices


def unlisted(path: str | os.PathLike[str], index: Index) -> list[str]:
    """Return the names in write_list's file that are missing from the index. Raises DataError for an unreadable list."""
    known = set(index.files)
    return [name for name in map(unquoted, filter(None, lines_of(path))) if name not in known]


def lines_of(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of the file, decoding non-UTF-8 bytes with surrogateescape. Raises DataError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the file list {path}: {error.strerror}") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16") if wide else data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(
            f"cannot read the file list {path}: it starts with a UTF-16 byte order mark but is not UTF-16 ({error.reason})"
        ) from error
    if "\0" in text:
        raise DataError(f"cannot read the file list {path}: it is neither UTF-8 nor UTF-16 with a byte order mark")
    return LINE_ENDS.split(text)


class _Names:
    """Names of an index, looked up by the text of a line."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.exact = {name: i for i, name in enumerate(index.files)}
        self.split = index.files[0].partition("/")[0]
        self.roots = {f"{os.path.abspath(index.root)}/", f"{os.path.realpath(index.root)}/"}

    @cached_property
    def composed(self) -> dict[str, set[int]]:
        """Map names in Unicode's composed form to numbers, for lists from systems that decompose them (NFD, as on macOS)."""
        found: dict[str, set[int]] = {}
        for name, number in self.exact.items():
            found.setdefault(unicodedata.normalize("NFC", name), set()).add(number)
        return found

    def meant(self, line: str) -> set[int]:
        """Return the numbers of all images that a line can refer to."""
        names = set(map(native, self.readings(line)))
        if found := {self.exact[name] for name in names if name in self.exact}:
            return found
        return set().union(*(self.composed.get(unicodedata.normalize("NFC", name), ()) for name in names))

    def readings(self, line: str) -> Iterator[str]:
        """Yield the readings of a line.

        They are: a name with backslashes, with a leading ./, as an absolute path below the index root, or without the split's
        folder; followed by a label, or as the one name among the fields of a table.
        """
        for text in {line, *_code_page(line)}:
            for field in {text, *_fields(text)}:
                for path in {field, field.replace("\\", "/")}:
                    for name in {path, *(path.removeprefix(root) for root in self.roots)}:
                        name = name.removeprefix("./")
                        yield name
                        if "/" in name and not name.startswith("/"):
                            yield f"{self.split}/{name}"


def _code_page(line: str) -> Iterator[str]:
    """Yield a line that is not UTF-8, decoded as Windows code page 1252."""
    data = line.encode("utf-8", "surrogateescape")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        with suppress(UnicodeDecodeError):
            yield data.decode("cp1252")


def _fields(line: str) -> Iterator[str]:
    """Yield the fields of a table row, and the text before a label."""
    for delimiter in ",;\t":
        if delimiter in line or line.startswith('"'):
            yield from (field.strip() for row in csv.reader([line], delimiter=delimiter) for field in row)
    if labelled := LABELLED.fullmatch(line):
        yield labelled[1]
