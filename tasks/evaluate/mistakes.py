"""Mistakes: test rows that the teacher answers better than the student, clustered by topic.

Rows are clustered by prompt and right answer (TF-IDF, k-means); each comes with the training rows
nearest to it. A cluster without near training rows needs more rows of its kind; one with many needs
better rows, or a larger student. Pictures are compared by their captions, `teacher_prompt`.

A row of data/evaluate/errors.jsonl, from which the next round can be extended:

    {"id": "9f8a…", "prompt": "Definition: a small rodent\\nCategory:", "group": "animal",
     "reference": " animal", "teacher": " animal", "student": " food", "confidence": 0.91,
     "cluster": 2, "nearest": [{"id": "77c1…", "similarity": 0.41}]}
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cohobate.data.messages import Message, prompt_text
from cohobate.data.records import EVALUATE, Row
from cohobate.params import Section

ERRORS = EVALUATE / "errors.jsonl"
CLUSTERS = EVALUATE / "clusters.json"
_TOPICS = 20


class NearestRow(BaseModel):
    """A training row near a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    similarity: float
    """Cosine of the TF-IDF vectors."""


class Mistake(BaseModel):
    """A test row that the teacher answers better than the student."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    prompt: str | tuple[Message, ...]
    teacher_prompt: str | tuple[Message, ...] | None = None
    """Of a row with pictures: what a teacher of text reads in their place."""
    images: tuple[str, ...] | None = None
    group: str
    reference: str
    teacher: str
    student: str
    confidence: float | None = None
    """Of the student in its wrong answer."""
    cluster: int = 0
    nearest: tuple[NearestRow, ...] = ()


def _text(row: Mistake | Row) -> str:
    """Return what a row asks; pictures by the words that a teacher of text reads for them."""
    return prompt_text((row.teacher_prompt or "") if row.images else row.prompt)


class Mistakes(Section):
    """How mistakes are clustered."""

    clusters: int = Field(6, ge=1)
    """Largest number of clusters."""
    nearest: int = Field(3, ge=0)
    """Training rows listed for each mistake."""
    terms: int = Field(6, ge=1)
    """Number of words that describe a cluster."""
    seed: int = 0
    """Seed of k-means."""

    def clustered(
        self, mistakes: Sequence[Mistake], training_rows: Sequence[Row]
    ) -> tuple[list[Mistake], list[dict[str, Any]]]:
        """Return the mistakes with cluster and nearest training rows, and the clusters."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits

        if not mistakes:
            return [], []
        texts = [f"{_text(row)} {row.reference}" for row in mistakes]
        texts += [f"{_text(row)} {row.answer or ''}" for row in training_rows]
        max_df = 0.3 if len(texts) >= 20 else 1.0  # leaves out the words of the prompt template
        vectorizer = TfidfVectorizer(stop_words="english", max_df=max_df, sublinear_tf=True)
        try:
            vectors = vectorizer.fit_transform(texts)
        except ValueError:  # no word is left to cluster by
            return list(mistakes), [self._cluster(0, mistakes, [])]
        # one vocabulary and one weighting for both, so that cosines are comparable
        mistake_vectors, training_vectors = vectors[: len(mistakes)], vectors[len(mistakes) :]
        with threadpool_limits(1):  # sums of floats depend on how many threads share them
            labels = self._labels(mistake_vectors)
        # TF-IDF vectors have length 1: their products are cosines
        rows = self._with_neighbours(
            mistakes, labels, (mistake_vectors @ training_vectors.T).toarray(), training_rows
        )
        words = vectorizer.get_feature_names_out()
        clusters = []
        for number in sorted(set(labels.tolist())):
            centre = np.asarray(mistake_vectors[labels == number].mean(axis=0)).ravel()
            # stable: of equal weights the first by alphabet, on every machine
            best = np.argsort(-centre, kind="stable")[: self.terms]
            inside = [row for row in rows if row.cluster == number]
            terms = [words[n] for n in best if centre[n] > 0]
            clusters.append(self._cluster(number, inside, terms))
        return rows, sorted(clusters, key=lambda c: (-c["rows"], c["cluster"]))

    def _labels(self, vectors: Any) -> Any:
        """Return the cluster of each mistake.

        Short texts share few words: without latent semantic analysis (Deerwester et al. 1990) one
        cluster would hold almost all of them.
        """
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD
        from sklearn.preprocessing import normalize

        # the decomposition has fewer components than rows, and than words
        topics = min(_TOPICS, *(size - 1 for size in vectors.shape))
        if topics > 1:
            projected = TruncatedSVD(topics, random_state=self.seed).fit_transform(vectors)
            vectors = normalize(projected)
        count = min(self.clusters, vectors.shape[0])
        return KMeans(count, n_init=3, random_state=self.seed).fit(vectors).labels_

    def _with_neighbours(
        self,
        mistakes: Sequence[Mistake],
        clusters: Any,
        similarities: Any,
        training_rows: Sequence[Row],
    ) -> list[Mistake]:
        completed = []
        for row, cluster, similarity in zip(mistakes, clusters, similarities, strict=True):
            best = np.argsort(-similarity, kind="stable")[: self.nearest]
            near = [
                NearestRow(id=training_rows[n].id, similarity=round(float(similarity[n]), 4))
                for n in best
                if similarity[n] > 0
            ]
            update = {"cluster": int(cluster), "nearest": tuple(near)}
            completed.append(row.model_copy(update=update))
        return completed

    def _cluster(self, number: int, rows: Sequence[Mistake], terms: list[str]) -> dict[str, Any]:
        groups = Counter(row.group or row.reference.strip() for row in rows)
        confused = Counter((row.reference.strip(), row.student.strip()) for row in rows)
        # a row without a near training row counts as 0
        nearest = [row.nearest[0].similarity if row.nearest else 0.0 for row in rows]
        return {
            "cluster": number,
            "rows": len(rows),
            "terms": terms,
            "groups": dict(groups.most_common(4)),
            "confused": [
                {"reference": reference, "student": student, "rows": n}
                for (reference, student), n in confused.most_common(3)
            ],
            "similarity_to_nearest_lesson": round(sum(nearest) / len(nearest), 4),
            "examples": [row.id for row in rows[:3]],
        }
