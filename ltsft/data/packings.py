"""How a file is packed, told by its first bytes and never by its name."""

from __future__ import annotations

import re
import tarfile

__all__ = ["GZIP_MAGIC", "HEAD_BYTES", "packing_problem"]

GZIP_MAGIC = b"\x1f\x8b"
HEAD_BYTES = tarfile.BLOCKSIZE
"""How much of a file tells it: the header of tar is the longest."""

_PACKINGS = {
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "lzma",
    b"LZIP\x01": "lzip",
    b"\x89LZO\x00": "lzop",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"\xff\x06\x00\x00sNaPpY": "snappy",
    b"\x1f\x9d": "compress (.Z)",
    b"\x1f\xa0": "compress (.Z)",
    b"\x1f\x1e": "pack (.z)",
}
_ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"PK\x07\x08": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"MSCF\x00\x00\x00\x00": "cab",
    b"!<arch>\n": "ar",
    b"\xc7\x71": "cpio",
}
_CPIO = re.compile(rb"07070[12][0-9a-fA-F]{104}|070707[0-7]{70}")  # a line of digits may begin like one
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)")
_FORMATS = {
    b"%PDF-": "a PDF",
    b"{\\rtf1": "an RTF document",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office document",
    b"SQLite format 3\x00": "an SQLite database",
    b"PAR1\x15": "a Parquet file",
    b"ARROW1\x00\x00": "an Arrow file",
    b"\x89PNG\r\n": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"<?xml ": "XML",
    b"<!doctype html": "HTML",
    b"<html": "HTML",
}


def packing_problem(head: bytes) -> str:
    """Say why a file is no text, or text in gzip, and how to mend it; empty where nothing tells that.

    Args:
        head: the first `HEAD_BYTES` of the file, or all of a shorter one.
    """
    if _BZIP2.match(head):
        return _packed("bzip2")
    if _CPIO.match(head):
        return _archive("cpio")
    if _is_tar(head[:HEAD_BYTES]):
        return _archive("tar")
    for magic, packing in _PACKINGS.items():
        if head.startswith(magic):
            return _packed(packing)
    for magic, archive in _ARCHIVES.items():
        if head.startswith(magic):
            return _archive(archive)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower()
    for magic, format in _FORMATS.items():
        if head.startswith(magic) or text.startswith(magic):
            return f"is {format}; allowed is text in UTF-8, plain or packed with gzip: export it as text"
    return ""


def _packed(packing: str) -> str:
    return f"is packed with {packing}; allowed are gzip and no packing: unpack it, or pack it again with gzip"


def _archive(archive: str) -> str:
    return (
        f"is a {archive} archive; a source is one file, plain or packed with gzip: unpack it and name its files, "
        "several as a list"
    )


def _is_tar(head: bytes) -> bool:
    """Whether it begins with the header of a member, whose checksum tells; an empty archive is zeros."""
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
