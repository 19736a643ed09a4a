"""Pictures of rows: kept once under the hash of their content, read when a batch needs them."""

import hashlib
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from cohobate.data.records import IMAGES
from cohobate.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 1 << 25
"""Largest file of a picture."""
MAX_PIXELS = 1 << 24
"""Most pixels of a picture: a small file can hold any number of them."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_ROTATED = 0x0112  # EXIF's orientation


class UnusableImageError(Exception):
    """A picture cannot be used; the text is the reason, the same for similar cases."""


class StoredImage(NamedTuple):
    """A picture as it is kept."""

    name: str
    """Hash of its content as it came, with the ending of its format."""
    content: bytes
    """A PNG or JPEG in RGB."""


def stored_image(data: bytes) -> StoredImage:
    """Check a picture and return it as it is kept.

    PNG and JPEG in RGB stay as they are. Others become PNG: the first frame, upright, transparent
    parts on white.

    Raises:
        UnusableImageError: it is none, broken, or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise UnusableImageError("the file of a picture is empty")
    if len(data) > MAX_BYTES:
        raise UnusableImageError(f"a picture of more than {MAX_BYTES >> 20} MiB")
    name = hashlib.blake2b(data, digest_size=12).hexdigest()
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            image.load()
            whole = image.mode == "RGB" and not image.getexif().get(_ROTATED, 1) > 1
            if whole and image.format in ("PNG", "JPEG"):
                return StoredImage(f"{name}.{image.format.lower()}", data)
            upright = ImageOps.exif_transpose(image).convert("RGBA")
            flat = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    except UnusableImageError:
        raise
    except Image.DecompressionBombError:
        raise UnusableImageError(_too_large()) from None
    except UnidentifiedImageError:
        raise UnusableImageError(f"not a picture ({', '.join(FORMATS)})") from None
    except Exception as error:  # each decoder raises its own
        raise UnusableImageError(f"a broken picture: {_reason(error)}") from error
    out = BytesIO()
    flat.convert("RGB").save(out, "PNG")
    return StoredImage(f"{name}.png", out.getvalue())


def load_image(name: str) -> "Image":
    """Read a picture of a row.

    Raises:
        UserError: it is not there, or damaged.
    """
    from PIL import Image

    path = IMAGES / name
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(
            f"a picture of a row cannot be read: {_reason(error)}",
            where=str(path),
            fix="dvc checkout data/collect; or dvc repro collect",
        ) from error


def _check_size(image: "Image") -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImageError(_too_large())


def _too_large() -> str:
    return f"a picture of more than {MAX_PIXELS >> 20} million pixels"


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:80]
