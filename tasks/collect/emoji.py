"""Emoji as pictures: each with its name, its category and, if wanted, its skin tones.

    {"image": <PNG of 64 pixels>, "name": "snow capped mountain", "answer": "travel"}

They are fetched as cohobate/packaged/emoji.yaml says. Pictures of one concept never lie on both
sides of a split: a role or a gesture with another gender or skin tone, the hours of a clock.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from cohobate.packaged import EMOJI
from cohobate.params import Section
from tasks.collect import emoji_release
from tasks.collect.source_records import QuarantinedRecord, SourceRecord

CATEGORIES = {
    "Smileys & Emotion": "smiley",
    "People & Body": "people",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
    "Flags": "flag",
}
"""Unicode's categories, each as one word."""
_SHARED = frozenset(
    # joiner and variation selector, skin tones, genders, man, woman, person, boy, girl, baby,
    # facing right
    [
        "200D",
        "FE0F",
        "1F3FB",
        "1F3FC",
        "1F3FD",
        "1F3FE",
        "1F3FF",
        "2640",
        "2642",
        "1F468",
        "1F469",
        "1F9D1",
        "1F466",
        "1F467",
        "1F476",
        "27A1",
    ]
)
"""Code points that do not make another concept."""
_CLOCKS = range(0x1F550, 0x1F568)


class Emoji(Section):
    """Emoji: a picture (`{image}`), its name (`{name}`) and its category (`{answer}`)."""

    type: Literal["emoji"]
    path: Literal["cohobate/packaged/emoji.yaml"] = EMOJI  # type: ignore[assignment]
    """Which release; it is fetched from npm and cached."""
    skin_tones: bool = False
    """Whether the pictures with other skin tones are taken too."""
    without: tuple[str, ...] = ()
    """Categories that are left out, such as `[flag]`."""

    @property
    def file(self) -> str:
        """Name of the file whose entries are counted."""
        return "emoji.json"

    @property
    def group(self) -> str:
        """Column with the class of a record: it is the answer."""
        return "answer"

    @property
    def licence(self) -> str:
        """Licences of data and pictures."""
        return emoji_release.read_release().licence

    def release(self) -> str:
        """Return the package and its version."""
        return emoji_release.read_release().package.replace("@", " ")

    def notice(self) -> str:
        """Return the notices of data and pictures, to write beside the rows."""
        with tarfile.open(emoji_release.archive()) as archive:
            licence = _read(archive, "LICENSE").decode()
        return (
            f"Names and categories: emoji-datasource-google.\n\n{licence}\n"
            "Pictures: Noto Emoji, Copyright Google, under the Apache License 2.0 "
            "(https://www.apache.org/licenses/LICENSE-2.0).\n"
        )

    def source_records(self) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the emoji one at a time, in the order of the data.

        Raises:
            UserError: they cannot be fetched.
        """
        with tarfile.open(emoji_release.archive()) as archive:
            entries = json.loads(_read(archive, "emoji.json"))
            for number, entry in enumerate(entries, start=1):
                category = CATEGORIES.get(entry["category"])
                if category is None or category in self.without:
                    reason = f"category {entry['category']}: left out"
                    yield QuarantinedRecord(
                        file=self.file, line=number, reason=reason, text=entry["name"]
                    )
                    continue
                yield _record(archive, number, entry, entry["image"], category)
                if self.skin_tones:
                    for variation in entry.get("skin_variations", {}).values():
                        yield _record(archive, number, entry, variation["image"], category)


def _record(
    archive: tarfile.TarFile, number: int, entry: Mapping[str, Any], image: str, category: str
) -> SourceRecord | QuarantinedRecord:
    name = str(entry["name"]).lower()
    try:
        picture = _read(archive, f"{emoji_release.PICTURES}/{image}")
    except KeyError:
        reason = "there is no picture of it"
        return QuarantinedRecord(file="emoji.json", line=number, reason=reason, text=name)
    columns = {"image": {"bytes": picture}, "name": name, "answer": category}
    return SourceRecord(number, columns, (concept(entry["unified"]), name), group=category)


def concept(unified: str) -> str:
    """Return what a sequence of code points shows, whoever does it: the rest of the sequence."""
    points = [point for point in unified.split("-") if point not in _SHARED]
    if not points:
        return "people" if len(unified.split("-")) > 2 else unified
    if len(points) == 1 and int(points[0], 16) in _CLOCKS:
        return "clock"
    return "-".join(points)


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    packed = archive.extractfile(name)
    assert packed is not None  # a file
    return packed.read()
