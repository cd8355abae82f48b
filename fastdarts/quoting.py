"""File names in text: lists, logs and messages have one rule for names that a line cannot hold as they are.

A name stands as it is. One with line breaks, other control characters, bytes that are no UTF-8, invisible characters, blanks
at an end or a quotation mark at the beginning stands as a JSON string, as in "train/a/caf\\udce9.JPEG". Names are written as
UTF-8 whatever the locale is, so that a list means the same files in another one.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress

SHOWN = 5  # names that a message lists


def quoted(name: str) -> str:
    """A file's name, as Python has it, as a part of one line of text that UTF-8 can encode."""
    try:
        text = os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # not the name of a file in this locale
        text = name
    return text if text.isprintable() and text == text.strip() and text[:1] != '"' else json.dumps(text)


def unquoted(text: str) -> str:
    """The inverse of `quoted`; what is no JSON string is a name as it stands."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        with suppress(ValueError):
            text = json.loads(text)
    return native(text)


def native(text: str) -> str:
    """A name from a UTF-8 text, read with surrogateescape, as Python has it in this locale."""
    try:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # lone surrogates, which no file's name has
        return text


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(quoted, names[:SHOWN])) + more
