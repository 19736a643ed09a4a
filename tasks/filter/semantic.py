"""Filters on what rows mean: none that says the same in other words, and the most diverse ones.

Shapes: N rows, D width, M rows of a block, C candidates.
"""

from itertools import count
from math import ceil, log
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Response, prompt_text
from cohobate.errors import UserError
from tasks.filter.verdicts import KEPT, Context, Filter, Keep, Refused, Rows, Verdict

if TYPE_CHECKING:
    import numpy as np

Text = Literal["prompt", "answer", "both"]
_BLOCK = 1024
_MISSED = 0.05
"""How far stochastic greedy may fall behind greedy, as a share of the optimum."""


class SemanticDuplicates(Filter):
    """Refuse rows that mean what one kept before means (SemDeDup, Abbas et al. 2023)."""

    type: Literal["semantic_duplicates"]
    similarity: float = Field(0.9, gt=0, lt=1)
    """Cosine of the embeddings from which two rows mean the same."""
    of: Text = "prompt"
    """Which text is compared."""
    threads: int = Field(2, ge=1)

    def over(self, rows: Rows, context: Context) -> Keep:
        """Embed all rows; return what says which are like an earlier one."""
        nearest_N = self._nearest(_embedded(rows, self.of, self.threads))
        places = count()

        def keep(row: Response) -> Verdict:
            cosine = round(float(nearest_N[next(places)]), 4)
            return (
                KEPT
                if cosine < self.similarity
                else Refused("means what an earlier row means", cosine)
            )

        return keep

    def _nearest(self, all_ND: "np.ndarray") -> "np.ndarray":
        """Return the highest cosine of each row with a row kept before it, (N,)."""
        import numpy as np

        found_N = np.full(len(all_ND), -1.0, dtype=np.float32)
        kept = np.zeros(len(all_ND), dtype=bool)
        for start in range(0, len(all_ND), _BLOCK):
            block_MD = all_ND[start : start + _BLOCK].astype(np.float32)
            best_M = found_N[start : start + len(block_MD)]
            for before in range(0, start, _BLOCK):
                mask_M = kept[before : before + _BLOCK]
                other_MD = all_ND[before : before + _BLOCK][mask_M].astype(np.float32)
                if len(other_MD):
                    np.maximum(best_M, (block_MD @ other_MD.T).max(1), out=best_M)
            self._within(block_MD @ block_MD.T, best_M, kept[start : start + len(block_MD)])
        return found_N

    def _within(self, cosine_MM: "np.ndarray", best_M: "np.ndarray", kept_M: "np.ndarray") -> None:
        """Go through a block row by row: what is kept counts for those behind it."""
        for row in range(len(best_M)):
            if best_M[row] < self.similarity:
                kept_M[row] = True
                best_M[row + 1 :] = best_M[row + 1 :].clip(cosine_MM[row, row + 1 :])


class Diversity(Filter):
    """Keep the most diverse part of the rows, by their embeddings.

    `facility_location` keeps rows that every other one has a likeness of (the mean cosine of a row
    with the nearest kept one is made large, by stochastic greedy: Mirzasoleiman et al. 2015);
    `k_centre` keeps rows far from each other (farthest-first: Gonzalez 1985; Sener & Savarese
    2018).
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
    def _one_size(self) -> "Diversity":
        if (self.keep_share is None) == (self.keep_rows is None):
            raise ValueError("give either keep_share or keep_rows")
        return self

    def over(self, rows: Rows, context: Context) -> Keep:
        """Embed all rows and choose; return what says which were chosen."""
        size = self.keep_rows or max(1, round((self.keep_share or 0) * len(rows)))
        if size >= len(rows):
            return lambda row: KEPT
        all_ND = _embedded(rows, self.of, self.threads)
        choose = _k_centre if self.by == "k_centre" else _facility_location
        chosen = frozenset(choose(all_ND, size, self.seed))
        places = count()
        return lambda row: KEPT if next(places) in chosen else Refused("others stand for it")


def _k_centre(all_ND: "np.ndarray", size: int, seed: int) -> list[int]:
    import numpy as np

    whole_ND = all_ND.astype(np.float32)
    chosen = [int(np.argmax(whole_ND @ whole_ND.mean(0)))]  # the most central row comes first
    nearest_N = whole_ND @ whole_ND[chosen[0]]
    while len(chosen) < size:
        nearest_N[chosen[-1]] = np.inf
        chosen.append(int(np.argmin(nearest_N)))
        np.maximum(nearest_N, whole_ND @ whole_ND[chosen[-1]], out=nearest_N)
        nearest_N[chosen] = np.inf
    return chosen


def _facility_location(all_ND: "np.ndarray", size: int, seed: int) -> list[int]:
    import numpy as np

    whole_ND = all_ND.astype(np.float32)
    rng = np.random.default_rng(seed)
    candidates = max(1, ceil(len(whole_ND) / size * log(1 / _MISSED)))
    left = np.arange(len(whole_ND))
    nearest_N = np.full(len(whole_ND), -1.0, dtype=np.float32)
    chosen: list[int] = []
    while len(chosen) < size:
        drawn_C = np.sort(rng.choice(left, min(candidates, len(left)), replace=False))
        cosine_NC = whole_ND @ whole_ND[drawn_C].T
        gains_C = np.maximum(cosine_NC - nearest_N[:, None], 0).sum(0)
        best = int(np.argmax(gains_C))
        chosen.append(int(drawn_C[best]))
        np.maximum(nearest_N, cosine_NC[:, best], out=nearest_N)
        left = left[left != chosen[-1]]
    return chosen


def _embedded(rows: Rows, of: Text, threads: int) -> "np.ndarray":
    """Return the embeddings of the rows, float16: 768 bytes a row."""
    import numpy as np

    from cohobate.models.sentence_embeddings import embeddings, encoder

    def text(row: Response) -> str:
        texts = {"prompt": prompt_text(row.prompt), "answer": row.answer or ""}
        return "\n".join(texts.values()) if of == "both" else texts[of]

    if not len(rows):
        raise UserError("no rows are left to compare", where="filter.filters")
    return np.concatenate(list(embeddings(map(text, rows), encoder(), threads)))
