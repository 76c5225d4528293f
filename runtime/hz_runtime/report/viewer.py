"""Looking through a scan, before and after: NiiVue and the small volumes, embedded once in a page.

Nothing of it is unpacked before somebody asks for it, and a page without it is complete.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

from hz_runtime.errors import HzError
from hz_runtime.report import markup
from hz_runtime.report.figure import Figure
from hz_runtime.report.strips import DIFFERENCE_LIMIT, difference_palette

SCRIPT = "viewer.js"
NIIVUE_SHA256 = "22c51f82467902430e7dff0f222f00e4571cecc65890826de4b3ddfb1739bb5d"
"""Of the text in niivue.js.gz, which niivue/build.sh makes."""


@cache
def niivue() -> str:
    """The source of NiiVue (BSD-2-Clause), as the page's policy must name it. Raises HzError when changed."""
    packed = _packed()
    text = gzip.decompress(packed)
    if hashlib.sha256(text).hexdigest() != NIIVUE_SHA256:
        raise HzError("niivue.js.gz is not the one that hz was released with.", "Install hz again.")
    return text.decode("utf-8")


def viewer(scans: Sequence[tuple[int, str, Figure]], total: int) -> str:
    """The section with the viewer, HTML; "" where no figure has its small volumes.

    scans : number of its panel, title (plain text) and figure of each.  total : scans with pictures.
    """
    shown = [scan for scan in scans if scan[2].small_before and scan[2].small_after]
    if not shown:
        return ""
    choices = "".join(f'<option value="{n}">{markup.text(title)}</option>' for n, title, _ in shown)
    some = (
        "" if len(shown) == total else f" This page holds {len(shown)} of {total} scans, flagged ones first."
    )
    colours = json.dumps(difference_palette().tolist(), separators=(",", ":"))
    data = "".join(
        f'<script type="application/gzip" id="volume-{n}-{side}">{_text(volume)}</script>\n'
        for n, _, figure in shown
        for side, volume in (("before", figure.small_before), ("after", figure.small_after))
    )
    return (
        '<h2 id="viewer-title">Look through a scan</h2>\n'
        '<section class="card" id="viewer" aria-labelledby="viewer-title">\n'
        f'<p class="soft small">Both volumes at about 2 mm, scaled 0 to 1.{some} '
        "Click or drag to move the slices; with the keyboard, go to the picture and use the arrow keys "
        "(left, right, up, down) and page up, page down (front, back). L is the subject's left.</p>\n"
        f'<div class="tools"><label>Scan <select id="viewer-scan">{choices}</select></label>'
        '<button type="button" id="viewer-open" hidden>Open the viewer</button></div>\n'
        '<div id="viewer-stage" hidden>\n'
        '<div class="tools" role="group" aria-label="What is shown">'
        '<button type="button" data-show="before" aria-pressed="false">Before</button>'
        '<button type="button" data-show="after" aria-pressed="false">After</button>'
        '<button type="button" data-show="difference" aria-pressed="false">Difference</button>'
        '<label class="fade">before <input type="range" id="viewer-fade" min="0" max="100" value="0" '
        'aria-label="Fade from before to after, percent"> after</label></div>\n'
        '<div class="stage"><canvas id="viewer-canvas" tabindex="0" role="img" '
        'aria-label="Axial, coronal and sagittal slice of the chosen scan"></canvas></div>\n</div>\n'
        '<p id="viewer-note" class="small" role="status">The viewer needs scripts, which are off here.</p>\n'
        "</section>\n"
        f'<script type="application/json" id="viewer-colours" data-limit="{DIFFERENCE_LIMIT:g}">{colours}'
        f'</script>\n<script type="application/gzip" id="viewer-niivue">{_text(_packed())}</script>\n{data}'
    )


def _packed() -> bytes:
    return resources.files("hz_runtime.report").joinpath("niivue/niivue.js.gz").read_bytes()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
