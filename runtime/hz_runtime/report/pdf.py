"""Writing PDF with the standard library: pages that are one picture each, with their words behind it.

The words cannot be seen (PDF 32000-1, text rendering mode 3): they are for searching, copying and readers of
text. They are written in Latin letters of a base font that every reader has; others become "?".
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

PAGE_POINTS = 595.0  # wide: A4, and as high as the picture's proportion asks for
_LEAST_POINTS = 4.0


def encode_pdf(pages: Sequence[tuple[U8, Sequence[str]]], title: str) -> bytes:
    """A PDF 1.4 of (pixels (h, w, 3) uint8, lines of text) pages; the same pages give the same bytes on one
    machine. Raises ValueError for other shapes or dtypes, or without pages."""
    if not pages:
        raise ValueError("PDF: no pages")
    objects: list[bytes] = []
    kids = [4 + 3 * n for n in range(len(pages))]
    listed = " ".join(f"{kid} 0 R" for kid in kids)
    objects.append(b"<< /Type /Catalog /Pages 2 0 R >>")
    objects.append(f"<< /Type /Pages /Kids [{listed}] /Count {len(pages)} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    for kid, (pixels, lines) in zip(kids, pages, strict=True):
        objects += _page(kid, pixels, lines)
    objects.append(b"<< /Title (" + _escaped(title) + b") /Producer (hz) >>")
    return _file(objects)


def _page(number: int, pixels: U8, lines: Sequence[str]) -> list[bytes]:
    """A page, its content and its picture, as objects `number` and the two after it."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"PDF: need a uint8 array (h, w, 3), got {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    tall = round(PAGE_POINTS * height / width, 2)
    page = (
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {PAGE_POINTS:g} {tall:g}] /Contents {number + 1} 0 R "
        f"/Resources << /Font << /F1 3 0 R >> /XObject << /Im1 {number + 2} 0 R >> >> >>"
    ).encode()
    drawn = f"q {PAGE_POINTS:g} 0 0 {tall:g} 0 0 cm /Im1 Do Q\n".encode() + _words(lines, tall)
    picture = f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceRGB"
    body = zlib.compress(np.ascontiguousarray(pixels).tobytes(), 9)
    return [
        page,
        _stream("", drawn),
        _stream(f"{picture} /BitsPerComponent 8 /Filter /FlateDecode ", body),
    ]


def _words(lines: Sequence[str], tall: float) -> bytes:
    if not lines:
        return b""
    leading = max(_LEAST_POINTS, min(14.0, (tall - 20.0) / len(lines)))
    start = f"BT 3 Tr /F1 {leading * 0.8:.2f} Tf {leading:.2f} TL 20 {tall - 20:.2f} Td\n".encode()
    return start + b"".join(b"(" + _escaped(line) + b") Tj T*\n" for line in lines) + b"ET\n"


def _escaped(text: str) -> bytes:
    plain = text.encode("cp1252", "replace")
    for special in (b"\\", b"(", b")"):
        plain = plain.replace(special, b"\\" + special)
    return plain.replace(b"\r", b" ").replace(b"\n", b" ")


def _stream(keys: str, body: bytes) -> bytes:
    return f"<< {keys}/Length {len(body)} >>\nstream\n".encode() + body + b"\nendstream"


def _file(objects: Sequence[bytes]) -> bytes:
    """The last of the objects is the document's information."""
    written, places = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(written))
        written += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    start = len(written)
    written += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    for place in places:
        written += f"{place:010} 00000 n \n".encode()
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>"
    written += f"trailer\n{trailer}\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(written)
