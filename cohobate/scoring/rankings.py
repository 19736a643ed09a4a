"""Rankings of documents as text: an embedder's answer to a query, the nearest document first.

    a small rodent with a long tail
    a rodent larger than a mouse

One line is one document, its white space made single spaces.
"""

from collections.abc import Iterable

DEPTH = 10
"""Documents of a ranking."""


def document_line(document: str) -> str:
    """Return a document on one line."""
    return " ".join(document.split())


def distinct_documents(documents: Iterable[str]) -> tuple[str, ...]:
    """Return documents in one line each, each once, in their order; empty ones are left out."""
    return tuple(dict.fromkeys(line for line in map(document_line, documents) if line))


def ranked_documents(ranking: str) -> list[str]:
    """Return the documents of a ranking."""
    return [line for line in map(document_line, ranking.split("\n")) if line]


def rank_of(document: str, ranking: str) -> int:
    """Return the rank of a document, from 1; 0 where it is not in the ranking."""
    documents, line = ranked_documents(ranking), document_line(document)
    return documents.index(line) + 1 if line in documents else 0
