"""Names of files in text, and streams that cannot encode them."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdarts.logs import any_text
from fastdarts.quoting import quoted, unquoted

PLAIN = ["train/a/n01 (2)'s.JPEG", "\u732b/gr\u00fc\u00df.png", "a\\b", 'a"b"', "\U0001f408.jpg"]
QUOTED = {
    b"a\nb": '"a\\nb"',
    b"\xe9": '"\\udce9"',
    b' "': '" \\""',
    b'"': '"\\""',
    b"a\xc2\xa0": '"a\\u00a0"',
    b"\xef\xbb\xbfa": '"\\ufeffa"',
}


@pytest.mark.parametrize("name", PLAIN)
def test_ordinary_names_are_unchanged(name: str) -> None:
    assert quoted(name) == unquoted(name) == name


@pytest.mark.parametrize("name", QUOTED)
def test_other_names_are_quoted_on_one_line_and_round_trip(name: bytes) -> None:
    assert quoted(os.fsdecode(name)) == QUOTED[name]
    assert os.fsencode(unquoted(QUOTED[name])) == name
    assert QUOTED[name].encode() and len(QUOTED[name].splitlines()) == 1


@pytest.mark.parametrize("byte", range(1, 256))
def test_every_byte_round_trips(byte: int) -> None:
    name = os.fsdecode(b"a" + bytes([byte]))
    assert unquoted(quoted(name)) == name


def test_unquoted_names_resembling_quotes() -> None:
    assert unquoted('"a') == '"a' and unquoted('"a"b"') == '"a"b"' and unquoted('"') == '"'


def test_lists_do_not_depend_on_locale(tmp_path: Path, root: Path) -> None:
    """Where Python takes names for ASCII, a name in UTF-8 is written and found as in every other locale."""
    names = ["\u732b", os.fsdecode(b"\xe9"), "a\nb"]
    for name in names:
        (tmp_path / name).touch()
    code = "import os, sys; from fastdarts.quoting import quoted, unquoted; print(sys.getfilesystemencoding()); " + (
        "names = [unquoted(line) for line in sys.argv[2:]]; print(sorted(names) == sorted(os.listdir(sys.argv[1]))); "
        "print(all(quoted(n) == os.fsencode(t).decode('utf-8', 'surrogateescape') for n, t in zip(names, sys.argv[2:])))"
    )
    lines = [quoted(name) for name in names]
    code = code.replace("for line in sys.argv[2:]", "for line in (os.fsencode(a).decode('utf-8') for a in sys.argv[2:])")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(tmp_path), *lines]
    done = subprocess.run(command, env=os.environ | ascii_only, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["ascii", "True", "True"]


def test_streams_escape_unencodable_text(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", errors="strict"))
    with any_text():
        print("\u00e9", "\udce9")
    assert sys.stdout.errors == "strict"
    sys.stdout.flush()
    assert raw.getvalue() == b"\\xe9 \\udce9\n"
