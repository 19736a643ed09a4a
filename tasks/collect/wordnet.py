"""The default task's data: WordNet's noun glosses, and the category of each noun.

    rodent: "relatively small placental mammals having a single pair of constantly growing
    incisor teeth specialized for gnawing"  ->  animal

WordNet is fetched, as cohobate/packaged/wordnet.yaml says; name a `data.noun` of your own in
`collect.source.path` to use that.

WordNet is Copyright Princeton University, free to use and to pass on with its notice, which
`collect` writes beside the rows.
"""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pydantic import Field

from cohobate.errors import UserError
from cohobate.packaged import WORDNET
from cohobate.params import Section
from tasks.collect import wordnet_release
from tasks.collect.files import inside_project
from tasks.collect.source_records import QuarantinedRecord, SourceRecord, excerpt

# lexicographer files 3 to 28 (WordNet, lexnames(5WN))
_NAMES = """
    Tops act animal artifact attribute body cognition communication event feeling food group
    location motive object person phenomenon plant possession process quantity relation shape state
    substance time
"""
CATEGORIES = dict(enumerate(_NAMES.split(), start=3))
_TOO_GENERAL = "Tops"  # the root concepts of all categories


class WordNet(Section):
    """Nouns of WordNet: definition (`{text}`), category (`{answer}`), noun (`{lemma}`)."""

    type: Literal["wordnet"]
    path: str = WORDNET
    """`cohobate/packaged/wordnet.yaml`: WordNet is fetched and cached; or a `data.noun`, or the
    folder with it."""
    min_characters: int = Field(15, ge=1)
    """Shortest definition taken."""
    max_characters: int = Field(220, ge=1)
    """Longest definition taken."""
    examples: bool = False
    """Whether there is a column `{example}` too: the first sentence in which the noun is used. It
    is empty where WordNet has none; about one noun in nine has one."""

    @property
    def file(self) -> str:
        """Name of the file whose lines are counted."""
        return "data.noun"

    @property
    def group(self) -> str:
        """Column with the class of a record: it is the answer."""
        return "answer"

    def source_records(self) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the nouns of WordNet, one sense at a time.

        Raises:
            UserError: WordNet cannot be fetched.
        """
        with self._database().open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.startswith(b"  "):  # the lines of the licence begin with two spaces
                    yield self._example(number, line)

    def release(self) -> str:
        """Return the release of WordNet."""
        return wordnet_release.name_of(self._database())

    @property
    def licence(self) -> str:
        """Licence of WordNet."""
        return "WordNet"

    def notice(self) -> str:
        """Return WordNet's licence notice, to write beside the rows."""
        with self._database().open(encoding="utf-8", errors="replace") as lines:
            numbered = takewhile(lambda line: line.startswith("  "), lines)
            return "".join(f"{line.strip().partition(' ')[2]}\n" for line in numbered)

    def _database(self) -> Path:
        if self.path == WORDNET:
            return wordnet_release.database()
        path = inside_project(self.path)
        database = path / "data.noun" if path.is_dir() else path
        if not database.is_file():
            raise UserError(
                "no data.noun there",
                where=f"collect.source.path: {self.path}",
                fix="name a data.noun of WordNet, or the folder with it",
            )
        return database

    def _example(self, number: int, line: bytes) -> SourceRecord | QuarantinedRecord:
        try:
            category, lemmas, definition, example = _parsed(line)
        except (ValueError, IndexError, KeyError):
            return _quarantined(number, "not a line of WordNet's data.noun", line)
        if category == _TOO_GENERAL:
            return _quarantined(number, "category Tops: too general", line)
        if not self.min_characters <= len(definition) <= self.max_characters:
            span = f"{self.min_characters} to {self.max_characters}"
            return _quarantined(number, f"definition not of {span} characters", line)
        columns = {"text": definition, "answer": category, "lemma": lemmas[0].replace("_", " ")}
        if self.examples:
            columns["example"] = example
        return SourceRecord(number, columns, (definition, *lemmas), group=category)


def _parsed(line: bytes) -> tuple[str, list[str], str, str]:
    """Return category, lemmas, definition and first example of a line of data.noun (wndb(5WN))."""
    head, _, gloss = line.decode().partition(" | ")
    fields = head.split(" ")
    words = int(fields[3], 16)
    lemmas = [fields[4 + 2 * word].casefold() for word in range(words)]
    definition, _, examples = gloss.partition('; "')
    example = examples.partition('"')[0].strip()
    return CATEGORIES[int(fields[1])], lemmas, definition.strip(), example


def _quarantined(number: int, reason: str, line: bytes) -> QuarantinedRecord:
    return QuarantinedRecord(
        file="data.noun", line=number, reason=reason, text=excerpt(line.strip())
    )
