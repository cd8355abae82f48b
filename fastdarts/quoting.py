r"""Quote file names in lists, logs and messages.

Plain names are unchanged. A name with line breaks, other control characters, non-UTF-8 bytes, invisible characters, leading
or trailing blanks, or a leading quotation mark becomes a JSON string, as in "train/a/caf\udce9.JPEG". Names are written as
UTF-8 in any locale, so that a list names the same files in another locale.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress

SHOWN = 5  # names listed in a message


def quoted(name: str) -> str:
    """Quote a file name (Python str) for one line of UTF-8 text."""
    try:
        text = os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # not a file name in this locale
        text = name
    return text if text.isprintable() and text == text.strip() and text[:1] != '"' else json.dumps(text)


def unquoted(text: str) -> str:
    """Invert `quoted`; a text that is not a JSON string is returned unchanged."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        with suppress(ValueError):
            text = json.loads(text)
    return native(text)


def native(text: str) -> str:
    """Convert a name from UTF-8 text, read with surrogateescape, to Python's str in this locale."""
    try:
        return os.fsdecode(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # lone surrogates, absent from file names
        return text


def shortlist(names: Sequence[str]) -> str:
    """List the first names and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(quoted, names[:SHOWN])) + more
