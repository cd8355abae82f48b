"""Lists of images: what a run writes is read back, whatever the names; what people bring is read where it means one image."""

import logging
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastdarts.data import DataError, ImageIndex, read_list, write_list
from tests.data.test_splits import index_of


def named(*files: str) -> ImageIndex:
    """An index of one class, without files."""
    return ImageIndex(Path("root"), ("a",), files, torch.zeros(len(files), dtype=torch.int64))


def test_list_round_trip(tree: Callable[..., Path], tmp_path: Path) -> None:
    root = tree(a=4, b=4)
    (root / "train/a/a_0.JPEG").rename(root / "train/a/gr\u00fc\u00df' e.JPEG")
    index = ImageIndex.from_root(root)
    chosen = torch.tensor([1, 3, 6])
    write_list(tmp_path / "list.txt", index, chosen)
    lines = (tmp_path / "list.txt").read_text().splitlines()
    assert lines == ["train/a/a_2.JPEG", "train/a/gr\u00fc\u00df' e.JPEG", "train/b/b_2.JPEG"]
    assert read_list(tmp_path / "list.txt", index).equal(chosen)


def test_unusual_names_round_trip(tmp_path: Path) -> None:
    """Line breaks of every kind, bytes that are no UTF-8, quotation marks, backslashes that look like an escape."""
    files = [b"a\n0", b"a\r1", b"a\r\n2", b" a3 ", b"\xff\xfe", b"caf\xe9", b"\xe2\x80\xa84", b'"5"', rb"a\n0", b"x\t6", b"7,8"]
    index = named(*sorted(os.fsdecode(b"train/a/" + name + b".JPEG") for name in files))
    write_list(tmp_path / "list.txt", index, torch.arange(len(files)))
    text = (tmp_path / "list.txt").read_bytes().decode()
    assert len(text.splitlines()) == len(files) and '"train/a/caf\\udce9.JPEG"' in text
    assert read_list(tmp_path / "list.txt", index).tolist() == list(range(len(files)))


def test_lists_of_earlier_versions_are_read(tmp_path: Path) -> None:
    index = named(os.fsdecode(b"train/a/\xe9.JPEG"), "train/a/\u200d.JPEG", "train/a/a\\n.JPEG")
    (tmp_path / "list.txt").write_bytes(b"".join(os.fsencode(name) + b"\n" for name in index.files))
    assert read_list(tmp_path / "list.txt", index).tolist() == [0, 1, 2]


NAMES = ["train/c0/0.JPEG", "train/c1/1.JPEG"]
LINES = "\n".join(NAMES)


@pytest.mark.parametrize(
    "content",
    [
        "train/c1/1.JPEG \r\n\ntrain/c0/0.JPEG",
        "\r".join(NAMES),
        b"\xef\xbb\xbf" + LINES.encode(),
        LINES.encode("utf-16"),
        LINES.replace("/", "\\"),
        "./train/c0/0.JPEG\n.\\train\\c1\\1.JPEG",
        "ROOT/train/c0/0.JPEG\nROOT/train/c1/1.JPEG",
        "c0/0.JPEG\nc1/1.JPEG",
        "train/c0/0.JPEG 0\ntrain/c1/1.JPEG\t1",
        "file name,label\ntrain/c0/0.JPEG,0\ntrain/c1/1.JPEG,1",
        '"index";"path"\n0;"train/c0/0.JPEG"\n1;"train/c1/1.JPEG"',
        '# mine\n"train/c0/0.JPEG"\n# more\ntrain/c1/1.JPEG',
    ],
    ids=["windows", "mac", "bom", "utf-16", "backslashes", "dot", "absolute", "no-split", "labels", "csv", "excel", "comments"],
)
def test_lists_of_other_programs_are_read(content: str | bytes, tmp_path: Path) -> None:
    index = index_of(2, 2)
    content = content.replace("ROOT", str(index.root.absolute())).encode() if isinstance(content, str) else content
    (tmp_path / "mine.txt").write_bytes(content)
    assert read_list(tmp_path / "mine.txt", index).tolist() == [0, 3]


def test_other_spellings_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "mine.txt").write_text(LINES)
    read_list(tmp_path / "mine.txt", index_of(2, 2))
    assert not caplog.records
    (tmp_path / "mine.txt").write_text("train/c0/0.JPEG\n./train/c1/1.JPEG")
    read_list(tmp_path / "mine.txt", index_of(2, 2))
    assert "1 of 2 names are spelled differently: line 2, ./train/c1/1.JPEG, is train/c1/1.JPEG" in caplog.text


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD", "latin-1"])
def test_accents_match_in_any_unicode_form(form: str, listed: str, tmp_path: Path) -> None:
    index = named(unicodedata.normalize(form, "train/a/caf\u00e9.JPEG"), "train/a/cafe.JPEG")
    name = "train/a/caf\u00e9.JPEG"
    data = name.encode("latin-1") if listed == "latin-1" else unicodedata.normalize(listed, name).encode()
    (tmp_path / "mine.txt").write_bytes(data)
    assert read_list(tmp_path / "mine.txt", index).tolist() == [0]


def test_names_differing_only_in_unicode_form_are_distinguished(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "train/a/caf\u00e9.JPEG") for form in ("NFC", "NFD")]
    index = named(*forms)
    for number, name in enumerate(forms):
        (tmp_path / "mine.txt").write_text(name)
        assert read_list(tmp_path / "mine.txt", index).tolist() == [number]
    (tmp_path / "mine.txt").write_bytes("train/a/caf\u00e9.JPEG,1".encode("latin-1"))
    assert read_list(tmp_path / "mine.txt", index).tolist() == [0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "train/c0/0.JPEG\nc9/1.JPEG\nx",
            r"line 2: c9/1.JPEG is not an image of root \(2 of 3 names are wrong\); write one name",
        ),
        ("0\n1", r"line 1: 0 is not an image of root .*in each line, as in train/c0/0.JPEG"),
        ("/elsewhere/train/c0/0.JPEG", "line 1: /elsewhere/train/c0/0.JPEG is not an image of root"),
        ("train/c0/0.JPEG,train/c0/1.JPEG", "line 1: .* may be train/c0/0.JPEG, train/c0/1.JPEG; write"),
        ("train/c0/0.JPEG\n./train/c0/0.JPEG", "lists an image twice: train/c0/0.JPEG"),
        ("\n\n", "is empty"),
        ("# nothing\n", "is empty"),
        (b"\xff\xfet", "starts with a UTF-16 byte order mark but is not"),
        (LINES.encode("utf-16-le"), "neither UTF-8 nor UTF-16 with a byte order mark"),
        (None, "cannot read the file list"),
    ],
)
def test_invalid_lists_are_rejected(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as caught:
        read_list(path, index_of(2))
    assert "list.txt" in str(caught.value) and "\n" not in str(caught.value)
