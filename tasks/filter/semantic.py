"""Filters on sentence embeddings: semantic duplicates, and the most diverse rows."""

from collections.abc import Iterator
from math import ceil, log
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from cohobate.data.messages import prompt_text
from cohobate.data.records import Response
from cohobate.errors import UserError
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Rows, Verdict

if TYPE_CHECKING:
    import numpy as np

Text = Literal["prompt", "answer", "both"]
_BLOCK = 1024
"""Rows whose similarities to another block are in memory at once."""
_MISSED = 0.05
"""How far stochastic greedy may fall short of greedy, as a share of the optimum."""


class SemanticDuplicateFilter(Filter):
    """Drop rows whose embedding is near that of a row kept before (SemDeDup, Abbas et al. 2023)."""

    type: Literal["semantic_duplicates"]
    similarity: float = Field(0.9, gt=0, lt=1)
    """Cosine similarity from which two rows are duplicates."""
    of: Text = "prompt"
    """Which text is embedded; raw text itself, which has no prompt."""
    threads: int = Field(2, ge=1)

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Embed all rows and compare each with the kept ones before it."""
        for nearest in self._nearest(_embedded(rows, self.of, self.threads)):
            cosine = round(float(nearest), 4)
            near = cosine >= self.similarity
            yield Drop("semantic duplicate of an earlier row", cosine) if near else KEEP

    def _nearest(self, embeddings_RD: "np.ndarray") -> "np.ndarray":
        """Return the highest cosine of each row with a row kept before it, (R,)."""
        import numpy as np

        nearest_R = np.full(len(embeddings_RD), -1.0, dtype=np.float32)
        kept_R = np.zeros(len(embeddings_RD), dtype=bool)
        for start in range(0, len(embeddings_RD), _BLOCK):
            block_BD = embeddings_RD[start : start + _BLOCK].astype(np.float32)
            nearest_B = nearest_R[start : start + len(block_BD)]
            for before in range(0, start, _BLOCK):
                kept_B = kept_R[before : before + _BLOCK]
                earlier_BD = embeddings_RD[before : before + _BLOCK][kept_B].astype(np.float32)
                if len(earlier_BD):
                    np.maximum(nearest_B, (block_BD @ earlier_BD.T).max(1), out=nearest_B)
            self._within(block_BD @ block_BD.T, nearest_B, kept_R[start : start + len(block_BD)])
        return nearest_R

    def _within(
        self, cosine_BB: "np.ndarray", nearest_B: "np.ndarray", kept_B: "np.ndarray"
    ) -> None:
        """Update a block row by row: only rows that are kept count for those after them."""
        for row in range(len(nearest_B)):
            if nearest_B[row] < self.similarity:
                kept_B[row] = True
                nearest_B[row + 1 :] = nearest_B[row + 1 :].clip(cosine_BB[row, row + 1 :])


class DiversityFilter(Filter):
    """Keep the most diverse part of the rows, by their embeddings.

    `facility_location` keeps rows that represent all others: it maximises the mean cosine of a row
    with its nearest kept one, by stochastic greedy (Mirzasoleiman et al. 2015). `k_centre` keeps
    rows far from each other (farthest-first: Gonzalez 1985; Sener & Savarese 2018).
    """

    type: Literal["diversity"]
    by: Literal["facility_location", "k_centre"] = "facility_location"
    keep_share: float | None = Field(None, gt=0, lt=1)
    """Share of the rows to keep."""
    keep_rows: int | None = Field(None, ge=1)
    """Or: number of rows to keep."""
    of: Text = "prompt"
    seed: int = 0
    threads: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _one_size(self) -> "DiversityFilter":
        if (self.keep_share is None) == (self.keep_rows is None):
            raise ValueError("give either keep_share or keep_rows")
        return self

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Embed all rows and select; nothing is embedded where all of them are kept."""
        size = self.keep_rows or max(1, round((self.keep_share or 0) * len(rows)))
        selected = frozenset(range(len(rows)))
        if size < len(rows):
            select = _k_centre if self.by == "k_centre" else _facility_location
            embeddings_RD = _embedded(rows, self.of, self.threads)
            selected = frozenset(select(embeddings_RD, size, self.seed))
        for position in range(len(rows)):
            yield KEEP if position in selected else Drop("not selected (diversity)")


def _k_centre(embeddings_RD: "np.ndarray", size: int, seed: int) -> list[int]:
    """Return the positions of `size` rows far from each other; `seed` is not used."""
    import numpy as np

    float_RD = embeddings_RD.astype(np.float32)
    chosen = [int(np.argmax(float_RD @ float_RD.mean(0)))]  # the most central row comes first
    nearest_R = float_RD @ float_RD[chosen[0]]
    while len(chosen) < size:
        nearest_R[chosen[-1]] = np.inf
        chosen.append(int(np.argmin(nearest_R)))
        np.maximum(nearest_R, float_RD @ float_RD[chosen[-1]], out=nearest_R)
        nearest_R[chosen] = np.inf
    return chosen


def _facility_location(embeddings_RD: "np.ndarray", size: int, seed: int) -> list[int]:
    """Return the positions of `size` representative rows, by stochastic greedy."""
    import numpy as np

    float_RD = embeddings_RD.astype(np.float32)
    rng = np.random.default_rng(seed)
    candidates = max(1, ceil(len(float_RD) / size * log(1 / _MISSED)))
    remaining = np.arange(len(float_RD))
    nearest_R = np.full(len(float_RD), -1.0, dtype=np.float32)
    chosen: list[int] = []
    while len(chosen) < size:
        drawn_C = np.sort(rng.choice(remaining, min(candidates, len(remaining)), replace=False))
        cosine_RC = float_RD @ float_RD[drawn_C].T
        gains_C = np.maximum(cosine_RC - nearest_R[:, None], 0).sum(0)
        best = int(np.argmax(gains_C))
        chosen.append(int(drawn_C[best]))
        np.maximum(nearest_R, cosine_RC[:, best], out=nearest_R)
        remaining = remaining[remaining != chosen[-1]]
    return chosen


def _embedded(rows: Rows, of: Text, threads: int) -> "np.ndarray":
    """Return the embeddings of the rows, (R, D) in float16: 768 bytes per row."""
    import numpy as np

    from cohobate.models.sentence_embeddings import embeddings, encoder

    def text(row: Response) -> str:
        if row.is_raw_text:
            return row.source_text
        texts = {"prompt": prompt_text(row.prompt), "answer": row.full_answer}
        return "\n".join(texts.values()) if of == "both" else texts[of]

    if not len(rows):
        raise UserError(
            "no rows reach this filter",
            where="filter.filters",
            fix="see data/filter/dropped.jsonl for the reasons, and loosen the filters before it",
        )
    return np.concatenate(list(embeddings(map(text, rows), encoder(), threads)))
