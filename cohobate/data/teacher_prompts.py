"""Rows with a `teacher_prompt` as their teacher reads them: the same answer behind another prompt.

Context distillation, self-distillation with privileged context and cross-modal distillation are
this: the teacher reads a long instruction, a reference solution or a caption that the student does
not see. Their losses are over the answer's tokens, which must be the same ids behind both prompts:
the n-th learnt token of the one is the n-th of the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cohobate.data.examples import Example, completion_positions, examples_of, row_key
from cohobate.data.records import Row
from cohobate.data.tokenized import encode_all, pad_right
from cohobate.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def teacher_examples(
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    examples: Sequence[Example],
    teacher_ids: np.ndarray | None = None,
) -> dict[str, Example]:
    """Return the rows that have a `teacher_prompt` as the teacher reads them, by their keys.

    Args:
        tokenizer: the teacher's.
        rows: all rows.
        examples: the rows as the student reads them; other rows are left out.
        teacher_ids: the teacher's id of each of the student's tokens; None: the same.

    Raises:
        UserError: an answer has other tokens behind the teacher's prompt, or was cut; or a row has
            pictures and no caption for the teacher; names the row.
    """
    blind = next((one.key for one in examples if one.images and not one.teacher_prompt), None)
    if blind is not None:
        raise UserError(
            "the row has pictures, which a teacher of text does not see, and no teacher_prompt in "
            "their place",
            where=f"row {blind}",
            fix='collect.teacher_prompt: {text: "a template with the caption"}',
        )
    if not any(example.teacher_prompt for example in examples):
        return {}
    of_student = {example.key: example for example in examples if example.teacher_prompt}
    own = [row for row in rows if row_key(row) in of_student]
    encoded = encode_all(tokenizer, [_answered(row.for_teacher()) for row in own])
    views = {view.key: view for view in examples_of(own, encoded)}
    for key, example in of_student.items():
        # a prompt without an answer, for rollouts, has no tokens to compare
        if example.length and not _same(example.labels, views[key].labels, teacher_ids):
            raise UserError(
                "the answer has other tokens behind the teacher's prompt than behind the student's",
                where=f"row {key}, teacher_prompt",
                fix="give both prompts as text or both as conversations, which end an answer "
                "alike; and leave too_long at drop: cut answers are not aligned",
            )
    return views


def with_rollout(view: Example, rollout: Example, teacher_ids: np.ndarray | None = None) -> Example:
    """Return an answer that the student generated, behind the prompt that the teacher reads.

    Args:
        view: the row as the teacher reads it, with any answer.
        rollout: the row with the student's answer, behind the student's prompt.
        teacher_ids: as for `teacher_examples`.
    """
    answer = _renumbered(rollout.ids[rollout.prompt_length :], teacher_ids)
    start = view.prompt_length
    ids = np.concatenate([view.ids[:start], answer])
    # of an answer that is masked no token is scored
    first = start if rollout.length else len(ids)
    return replace(view, ids=ids, spans=((first, len(ids)),), by_student=True)


def as_teacher_reads(
    views: Mapping[str, Example], example: Example, teacher_ids: np.ndarray | None = None
) -> Example:
    """Return an example, given or generated, as the teacher reads it, in the teacher's ids.

    Args:
        views: what `teacher_examples` returned.
        example: as the student reads it.
        teacher_ids: as for `teacher_examples`.
    """
    if not example.teacher_prompt:
        return replace(example, ids=_renumbered(example.ids, teacher_ids))
    view = views[example.key]
    return with_rollout(view, example, teacher_ids) if example.by_student else view


def view_batch(
    views: Mapping[str, Example], rows: Sequence[Example], teacher_ids: np.ndarray | None = None
) -> "dict[str, Tensor]":
    """Return `ids_BS` and `positions_N` of a micro-batch as the teacher reads it.

    Arguments are those of `as_teacher_reads`. Completion tokens are in the order of the student's.
    """
    read = [as_teacher_reads(views, row, teacher_ids) for row in rows]
    # the last token predicts none
    ids_BS = pad_right([row.ids[:-1].tolist() for row in read], 0)
    return {"ids_BS": ids_BS, "positions_N": completion_positions(read, ids_BS.shape[1])}


def _answered(row: Row) -> Row:
    # a prompt for rollouts: any answer shows where it begins
    return row if row.answer is not None else row.model_copy(update={"answer": ""})


def _same(labels: np.ndarray, of_teacher: np.ndarray, teacher_ids: np.ndarray | None) -> bool:
    return np.array_equal(_renumbered(labels, teacher_ids), of_teacher)


def _renumbered(ids: np.ndarray, teacher_ids: np.ndarray | None) -> np.ndarray:
    return ids if teacher_ids is None else teacher_ids[ids].astype(ids.dtype)
