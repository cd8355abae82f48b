"""Published genotypes by name; published.json has their texts, sources and other names."""

import json
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from fastdarts.spaces.genotype import Genotype, GenotypeError

_FILE = Path(__file__).with_name("published.json")


@cache
def rows() -> dict[str, dict[str, Any]]:
    """Return by name `text`, `source` and, where there are any, other names as `also`."""
    return json.loads(_FILE.read_text(encoding="utf-8"))


def names() -> list[str]:
    """Return the names, as their papers and codebases write them."""
    return list(rows())


def published(name: str) -> Genotype | None:
    """Return the published genotype of a name, in any case, with dashes, underscores or neither; None for another name."""
    text = _texts().get(_plain(name))
    return None if text is None else Genotype.from_text(text)


def unknown(name: str) -> GenotypeError:
    """Return the error for a name that is not published, with the names of similar ones."""
    plain = {_plain(each): each for each in names()}
    near = [each for each in plain if _plain(name) and _plain(name) in each][:6] or get_close_matches(_plain(name), plain, n=4)
    meant = f"{', '.join(plain[each] for each in near)} perhaps" if near else f"such are {', '.join(list(plain.values())[:7])}"
    return GenotypeError(f"no published genotype, file or folder {name[:120]!r}: {meant}")


@cache
def _texts() -> dict[str, str]:
    """Return the text of each plain name."""
    return {_plain(each): row["text"] for name, row in rows().items() for each in (name, *row.get("also", ()))}


def _plain(name: str) -> str:
    """Return a name in lower case without dashes, underscores and spaces, "" for a text that is no name, as a path."""
    plain = name.strip().lower().translate(dict.fromkeys(map(ord, "-_ ")))
    return plain if plain.isalnum() else ""
