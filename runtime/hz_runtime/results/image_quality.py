"""What is said of a scan's image quality in a word, of its measures as run.json has them.

How they are measured, and where their limits come from, is `model_space.image_quality`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hz_runtime.model_space.image_quality import LOOK, NOT_MEASURED, OK


def quality_words(quality: Sequence[Mapping[str, Any]]) -> str | None:
    """ "ok"; "look at it" and the measures beyond their limits; "n/a" where none was judged; None for none.

    quality : objects of a scan's "quality" (`Quality.to_dict`); what is none of them does not matter.
    """
    if not quality:
        return None
    beyond = [str(one.get("measure")) for one in quality if one.get("verdict") == LOOK]
    if beyond:
        return f"{LOOK} ({', '.join(beyond)})"
    return OK if any(one.get("verdict") == OK for one in quality) else NOT_MEASURED
