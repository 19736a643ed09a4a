"""Pictures of rows in the report: small, and within the page."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from cohobate.data.records import IMAGES

_SIDE = 96
"""Most pixels of a side."""


def inline(root: Path, names: Sequence[str]) -> list[str]:
    """Return pictures as `data:` addresses; those that are not there are left out."""
    return [_address(root / IMAGES / name) for name in names if (root / IMAGES / name).is_file()]


def _address(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    out = BytesIO()
    small.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
