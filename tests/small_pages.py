"""What the tests of pages share: a reader of HTML that is strict about nesting, and a drawn phantom."""

from __future__ import annotations

import struct
import zlib
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np

from hz_runtime.report.drawing import figure_data
from hz_runtime.report.figure import Figure

VOID = {"meta", "img", "br", "link", "input"}
HOSTILE = '<script>alert("1")</script>&\'.nii.gz'


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def decode_png(data: bytes) -> np.ndarray:
    """Decoder of its own, byte by byte from the PNG specification: (h, w) indices or grey, (h, w, 3) RGB."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, body, palette, header = 8, b"", None, None
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, chunk = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + chunk)
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", chunk)
        elif kind == b"PLTE":
            palette = np.frombuffer(chunk, np.uint8).reshape(-1, 3)
        elif kind == b"IDAT":
            body += chunk
        at += 12 + size
    assert header is not None and kind == b"IEND"
    width, height, depth, colour, *_ = header
    assert depth == 8 and colour in (0, 2, 3)
    bpp = 3 if colour == 2 else 1
    raw = zlib.decompress(body)
    stride = width * bpp
    assert len(raw) == height * (stride + 1)
    out = [[0] * stride for _ in range(height)]
    for y in range(height):
        line = raw[y * (stride + 1) : (y + 1) * (stride + 1)]
        for x in range(stride):
            a = out[y][x - bpp] if x >= bpp else 0
            b = out[y - 1][x] if y else 0
            c = out[y - 1][x - bpp] if y and x >= bpp else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            guess = (0, a, b, (a + b) // 2, paeth)[line[0]]
            out[y][x] = (line[1 + x] + guess) % 256
    pixels = np.array(out, np.uint8).reshape((height, width, 3) if bpp == 3 else (height, width))
    return pixels if palette is None else palette[pixels]


def make_figure(brightness: float = 0.5, tilt: float = 0.0) -> Figure:
    """A box of one brightness, and a fifth brighter after; `tilt` makes it brighter towards the right."""
    data = np.zeros((20, 24, 18), np.float32)
    data[4:16, 4:20, 4:14] = brightness + tilt * np.linspace(-0.5, 0.5, 12)[:, None, None]
    volume = SimpleNamespace(data=data, affine=np.eye(4))
    prepared = SimpleNamespace(grid=data, grid_affine=np.eye(4), low=0.0, high=1.0)
    return figure_data(volume, prepared, data * np.float32(1.2), data)
