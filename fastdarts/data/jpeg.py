"""Parse the header of a JPEG file: its size, and whether all decoders agree on its RGB values."""

from struct import error as StructError
from struct import unpack_from

START, END = b"\xff\xd8", b"\xff\xd9"
ADOBE, SCAN = 0xEE, 0xDA
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; all Huffman
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless, hierarchical, arithmetic
YCBCR = 1  # Adobe's number


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return the stored (height, width) of a plain JPEG: 8 bits, Huffman coded, grayscale or YCbCr, complete. Else None.

    The three components of a plain file are numbered 1, 2, 3 and no marker declares a colour space other than YCbCr. For
    other files (RGB-coded, CMYK, YCCK) decoders must guess the colours and may disagree. Subsampling, EXIF and colour
    profiles are ignored. A file without an end marker is incomplete: decoders may reject it or fill in missing data.
    """
    try:
        return _size(data)
    except (IndexError, StructError):  # truncated header
        return None


def _size(data: bytes) -> tuple[int, int] | None:
    if data[:2] != START:
        return None
    at, components, size, transform = 2, 0, None, YCBCR
    while data[at + 1] != SCAN:
        byte, marker = data[at], data[at + 1]
        if byte != 0xFF or marker in OTHER_FRAMES:
            return None
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in FRAMES:
            bits, height, width, components = unpack_from(">BHHB", data, at + 4)
            numbers = data[at + 10 : at + 10 + 3 * components : 3]
            if bits != 8 or not height or (components != 1 and numbers != b"\1\2\3"):
                return None
            size = height, width
        elif marker == ADOBE and data[at + 4 : at + 9] == b"Adobe":
            transform = data[at + 15]
        at += 2 + unpack_from(">H", data, at + 2)[0]
    whole = data.rfind(END, at) > 0
    return size if whole and (components == 1 or transform == YCBCR) else None
