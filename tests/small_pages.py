"""What the tests of pages share: a reader of HTML that is strict about nesting, and a drawn phantom."""

from __future__ import annotations

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


def make_figure(brightness: float = 0.5, tilt: float = 0.0) -> Figure:
    """A box of one brightness, and a fifth brighter after; `tilt` makes it brighter towards the right."""
    data = np.zeros((20, 24, 18), np.float32)
    data[4:16, 4:20, 4:14] = brightness + tilt * np.linspace(-0.5, 0.5, 12)[:, None, None]
    volume = SimpleNamespace(data=data, affine=np.eye(4))
    prepared = SimpleNamespace(grid=data, grid_affine=np.eye(4), low=0.0, high=1.0)
    return figure_data(volume, prepared, data * np.float32(1.2), data)
