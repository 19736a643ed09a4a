"""A teacher's distributions over the labels, as targets of a classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.scoring.labels import LabelSet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.data.examples import Example
    from cohobate.models.number_formats import Precision


class LabelTargets:
    """The teacher's distributions of a phase's rows, collated for each micro-batch."""

    def __init__(self, keys: Sequence[str], logp_RC: "Tensor") -> None:
        """Take the rows' keys, and their log-probabilities over the labels."""
        self._place = {key: n for n, key in enumerate(keys)}
        self._logp_RC = logp_RC

    def collate(self, rows: "Sequence[Example]") -> "dict[str, Tensor]":
        """Return `labels_BC`: log-probabilities of the labels, a row of the batch each."""
        return {"labels_BC": self._logp_RC[[self._place[row.key] for row in rows]]}


class ClassifierTeacher:
    """A trained classifier: its distributions are computed once, before training.

    Args:
        folder: its checkpoint.
        labels: the student's; each has a column of the distributions.
        precision: number format of its weights.
        threads: CPU threads.

    Raises:
        UserError: it is no classifier, or one of other labels.
    """

    def __init__(
        self, folder: Path, labels: LabelSet, precision: "Precision", threads: int
    ) -> None:
        from cohobate.fast.frozen import load_frozen
        from cohobate.models import checkpoints

        self.folder, self.threads = folder, threads
        where = f"targets: {folder}"
        if not checkpoints.is_classifier(folder):
            raise UserError(
                "the teacher is no classifier",
                where=where,
                fix="targets: data/capture/<teacher> with capture.signals: {type: labels}",
            )
        device = checkpoints.accelerator()
        self.model: PreTrainedModel
        self.tokenizer: PreTrainedTokenizerBase
        self.model, self.tokenizer = load_frozen(folder, precision=precision, device=device)
        other = LabelSet.of_config(self.model.config)
        if set(other.names) != set(labels.names):
            name = min(set(other.names) ^ set(labels.names))
            raise UserError(
                f"teacher and student have different labels: only one of them has {name!r}",
                where=where,
                fix="train both from the labels of the same rows (init_student.rows)",
            )
        self._columns = [other.names.index(name) for name in labels.names]

    def of_rows(self, rows: Sequence[Row]) -> "Tensor":
        """Return the log-probabilities of the labels of each row, as the teacher reads it."""
        import torch

        from cohobate.generation.classification import label_logprobs
        from cohobate.models import checkpoints

        logp_RC = torch.empty(len(rows), len(self._columns))
        prefix = checkpoints.prompt_prefix(self.folder)
        prompts = [row.for_teacher().prefixed(prefix).full_prompt for row in rows]
        scored = label_logprobs(self.model, self.tokenizer, prompts, threads=self.threads)
        for n, logp_C in scored:
            logp_RC[n] = logp_C[self._columns]
        return logp_RC

    def of_examples(self, examples: "Sequence[Example]") -> "Tensor":
        """Return the log-probabilities of the labels of texts of the student's tokens, (R, C)."""
        import torch

        from cohobate.generation.classification import logprobs_of_ids

        logp_RC = torch.empty(len(examples), len(self._columns))
        # the last token of an example stands for its label
        texts = [example.ids[:-1].tolist() for example in examples]
        for n, logp_C in logprobs_of_ids(self.model, texts, threads=self.threads):
            logp_RC[n] = logp_C[self._columns]
        return logp_RC
