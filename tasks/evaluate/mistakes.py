"""Where the student fails and the teacher does not: what to generate next.

Such rows are put together by what prompt and right answer are about (TF-IDF, k-means), and each is
shown the training rows nearest to it. A cluster with no near training row asks for more rows of its
kind; one with many asks for better ones, or for a larger student.

data/evaluate/errors.jsonl, for the next round's mining:

    {"id": "9f8a…", "prompt": "Definition: a small rodent\\nCategory:", "group": "animal",
     "reference": " animal", "teacher": " animal", "student": " food", "confidence": 0.91,
     "cluster": 2, "nearest": [{"id": "77c1…", "similarity": 0.41}]}
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cohobate.data.records import EVALUATE, Message, Row, prompt_text
from cohobate.params import Section

ERRORS = EVALUATE / "errors.jsonl"
CLUSTERS = EVALUATE / "clusters.json"
_TOPICS = 20


class Near(BaseModel):
    """A training row that resembles."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    similarity: float
    """Cosine of the TF-IDF vectors."""


class Mistake(BaseModel):
    """A test row that the teacher answers better than the student."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    prompt: str | tuple[Message, ...]
    group: str
    reference: str
    teacher: str
    student: str
    confidence: float | None = None
    """The student's, in its wrong answer."""
    cluster: int = 0
    nearest: tuple[Near, ...] = ()


class Mistakes(Section):
    """How mistakes are put together."""

    clusters: int = Field(6, ge=1)
    """At most so many."""
    nearest: int = Field(3, ge=0)
    """Training rows beside each mistake."""
    terms: int = Field(6, ge=1)
    """Words that name a cluster."""
    seed: int = 0
    """Of k-means."""

    def sorted_out(
        self, mistakes: Sequence[Mistake], lessons: Sequence[Row]
    ) -> tuple[list[Mistake], list[dict[str, Any]]]:
        """Return the mistakes with cluster and nearest training rows, and the clusters."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits

        if not mistakes:
            return [], []
        texts = [f"{prompt_text(row.prompt)} {row.reference}" for row in mistakes]
        texts += [f"{prompt_text(row.prompt)} {row.answer or ''}" for row in lessons]
        common = 0.3 if len(texts) >= 20 else 1.0  # the words of the template tell nothing
        weigh = TfidfVectorizer(stop_words="english", max_df=common, sublinear_tf=True)
        try:
            vectors = weigh.fit_transform(texts)
        except ValueError:  # no word is left: nothing to tell the rows apart by
            return list(mistakes), [self._cluster(0, mistakes, [])]
        own, taught = vectors[: len(mistakes)], vectors[len(mistakes) :]
        with threadpool_limits(1):  # sums of floats depend on how many threads share them
            labels = self._clustered(own)
        rows = self._with_neighbours(mistakes, labels, (own @ taught.T).toarray(), lessons)
        words = weigh.get_feature_names_out()
        found = []
        for number in sorted(set(labels.tolist())):
            centre = np.asarray(own[labels == number].mean(axis=0)).ravel()
            best = np.argsort(-centre, kind="stable")[: self.terms]
            inside = [row for row in rows if row.cluster == number]
            found.append(self._cluster(number, inside, [words[n] for n in best if centre[n] > 0]))
        return rows, sorted(found, key=lambda c: (-c["rows"], c["cluster"]))

    def _clustered(self, own: Any) -> Any:
        """Return the cluster of each mistake.

        Short texts share few words: k-means sees them through latent semantic analysis (Deerwester
        et al. 1990), or one cluster would hold almost all of them.
        """
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD
        from sklearn.preprocessing import normalize

        topics = min(_TOPICS, *(size - 1 for size in own.shape))
        if topics > 1:
            own = normalize(TruncatedSVD(topics, random_state=self.seed).fit_transform(own))
        count = min(self.clusters, own.shape[0])
        return KMeans(count, n_init=3, random_state=self.seed).fit(own).labels_

    def _with_neighbours(
        self, mistakes: Sequence[Mistake], clusters: Any, alike: Any, lessons: Sequence[Row]
    ) -> list[Mistake]:
        found = []
        for row, cluster, likeness in zip(mistakes, clusters, alike, strict=True):
            best = np.argsort(-likeness, kind="stable")[: self.nearest]
            near = [
                Near(id=lessons[n].id, similarity=round(float(likeness[n]), 4))
                for n in best
                if likeness[n] > 0
            ]
            found.append(row.model_copy(update={"cluster": int(cluster), "nearest": tuple(near)}))
        return found

    def _cluster(self, number: int, rows: Sequence[Mistake], terms: list[str]) -> dict[str, Any]:
        groups = Counter(row.group or row.reference.strip() for row in rows)
        confused = Counter((row.reference.strip(), row.student.strip()) for row in rows)
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
