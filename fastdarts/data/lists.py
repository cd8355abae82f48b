"""Lists of images in text files: the ones that a run writes, and those that people bring from elsewhere."""

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
from fastdarts.quoting import few, native, quoted, unquoted

LINE_ENDS = re.compile(r"\r\n|\r|\n")
HEADING = re.compile(r"[A-Za-z_ ]+([,;\t][A-Za-z_ ]+)*")  # words without a path, a number or a file's extension
LABELLED = re.compile(r"(.*\S)\s+-?\d+")  # NAME LABEL
log = logging.getLogger(__name__)


def write_list(path: str | os.PathLike[str], index: Index, indices: Tensor) -> None:
    """Write the names of `indices`, relative to the index' root, one in each line (quoting.quoted). Raises OSError."""
    text = "".join(f"{quoted(index.files[i])}\n" for i in indices.tolist())
    Path(path).write_text(text, encoding="utf-8")


def read_list(path: str | os.PathLike[str], index: Index) -> Tensor:
    """The inverse of write_list, for lists of the user's own too: int64 (N,), sorted; blank lines are skipped.

    Text is UTF-8, UTF-16 with a byte order mark, or Windows' code page 1252. What is no name as write_list writes it is read as
    _Names.readings says, if all that it can mean is one image. A line that begins with # is a comment.
    Raises DataError for a list that is unreadable, empty, names an image twice, or has a line that is not one image of the
    index: the first of them is shown, and the form that is wanted.
    """
    names = _Names(index)
    lines = _lines(path)
    form = f"write one name relative to {index.root} in each line, as in {quoted(index.files[0])}"
    found: list[int] = []
    wrong: list[tuple[int, str]] = []  # (number of the line, why)
    other: list[tuple[int, str]] = []  # (number of the line, line)
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        image = names.exact.get(line)
        if image is None and line and (image := names.exact.get(unquoted(line))) is None:
            if line.startswith("#") or (not found and not wrong and not other and HEADING.fullmatch(line.replace('"', ""))):
                continue
            images = names.meant(line)
            if len(images) != 1:
                many = f"may be {few([index.files[i] for i in sorted(images)])}"
                wrong.append((number, f"{quoted(native(line))} {many if images else f'is no image of {index.root}'}"))
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
        raise DataError(f"{path} lists an image twice: {few([index.files[i] for i in twice.tolist()])}")
    if other:
        number, line = other[0]
        told = f"line {number}, {quoted(native(line))}, is {quoted(index.files[int(names.meant(line).pop())])}"
        log.info("%s: %d of %d names are written in another way: %s", path, len(other), len(found), told)
    return indices


def unlisted(path: str | os.PathLike[str], index: Index) -> list[str]:
    """The names of a list by write_list that are not in the index. Raises DataError for a list that is unreadable."""
    known = set(index.files)
    return [name for name in map(unquoted, filter(None, _lines(path))) if name not in known]


def _lines(path: str | os.PathLike[str]) -> list[str]:
    """The file's lines; bytes that are no UTF-8 as surrogateescape has them. Raises DataError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the file list {path}: {error.strerror}") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16") if wide else data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read the file list {path}: it begins as UTF-16 and is not ({error.reason})") from error
    if "\0" in text:
        raise DataError(f"cannot read the file list {path}: it is no text in UTF-8, nor in UTF-16 with a byte order mark")
    return LINE_ENDS.split(text)


class _Names:
    """The names of an index, to be found by what a line says."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.exact = {name: i for i, name in enumerate(index.files)}
        self.split = index.files[0].partition("/")[0]
        self.roots = {f"{os.path.abspath(index.root)}/", f"{os.path.realpath(index.root)}/"}

    @cached_property
    def composed(self) -> dict[str, set[int]]:
        """Numbers by names in Unicode's composed form, for lists of a system that writes them otherwise (NFD, as macOS)."""
        found: dict[str, set[int]] = {}
        for name, number in self.exact.items():
            found.setdefault(unicodedata.normalize("NFC", name), set()).add(number)
        return found

    def meant(self, line: str) -> set[int]:
        """Numbers of all images that a line can mean."""
        names = set(map(native, self.readings(line)))
        if found := {self.exact[name] for name in names if name in self.exact}:
            return found
        return set().union(*(self.composed.get(unicodedata.normalize("NFC", name), ()) for name in names))

    def readings(self, line: str) -> Iterator[str]:
        """What may be meant by a line: a name with backslashes, with ./ before it, below the index' root as an absolute path,
        or without the split's folder; with a label behind it, or as the one name among the fields of a table."""
        for text in {line, *_code_page(line)}:
            for field in {text, *_fields(text)}:
                for path in {field, field.replace("\\", "/")}:
                    for name in {path, *(path.removeprefix(root) for root in self.roots)}:
                        name = name.removeprefix("./")
                        yield name
                        if "/" in name and not name.startswith("/"):
                            yield f"{self.split}/{name}"


def _code_page(line: str) -> Iterator[str]:
    """A line that is no UTF-8, read as Windows' Latin alphabet."""
    data = line.encode("utf-8", "surrogateescape")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        with suppress(UnicodeDecodeError):
            yield data.decode("cp1252")


def _fields(line: str) -> Iterator[str]:
    """The parts of a line of a table, and what stands before a label."""
    for delimiter in ",;\t":
        if delimiter in line or line.startswith('"'):
            yield from (field.strip() for row in csv.reader([line], delimiter=delimiter) for field in row)
    if labelled := LABELLED.fullmatch(line):
        yield labelled[1]
