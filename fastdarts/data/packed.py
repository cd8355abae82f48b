"""Detect archives and other unusable formats by their first bytes, and suggest a remedy."""

from pathlib import Path

TAR_MARK, TAR_AT = b"ustar", 257
UNPACK = "unpack it and give the resulting folder or file"
CONVERT = "write its images and labels with numpy.savez(FILE, images=..., labels=...), or as image files in train/CLASS"
KINDS = (  # magic bytes, format, remedy
    (b"\x1f\x8b", "packed by gzip", UNPACK),
    (b"BZh", "packed by bzip2", UNPACK),
    (b"\xfd7zXZ\0", "packed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x93NUMPY", "one array of numpy.save, without labels", CONVERT),
    (b"MATLAB 5.0", "a MATLAB file", CONVERT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT),
    (b"PAR1", "a Parquet file", CONVERT),
    (b"ARROW1", "an Arrow file", CONVERT),
)
MEMBERS = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".zip")  # suffixes of archives


def what_it_is(path: Path) -> str | None:
    """Return the format of an archive or other unusable file and the remedy; None for any other file. Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(TAR_AT + len(TAR_MARK))
    if head[TAR_AT:] == TAR_MARK:
        return f"is a tar archive: {UNPACK}"
    return next((f"is {what}: {remedy}" for start, what, remedy in KINDS if head.startswith(start)), None)


def packed(names: list[str]) -> str:
    """Return the remedy for a folder of `names` without images that contains archives; "" if it contains none."""
    archive = next((name for name in sorted(names) if name.lower().endswith(MEMBERS)), None)
    return "" if archive is None else f"; {archive} is an archive, unpack it"
