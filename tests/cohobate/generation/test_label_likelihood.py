"""Likelihoods of labels by a prefix tree are those of each label read behind its prompt."""

from typing import Any

import pytest
import torch

from cohobate.errors import UserError
from cohobate.fast import padding_free
from cohobate.generation.label_likelihood import LabelLikelihood, LabelTree
from cohobate.models.lm_head import Head

LABELS = ((5, 2), (5, 6, 2), (5, 6, 7, 2), (9, 2), (2,))
"""One is another's beginning, and one is empty; 2 closes them."""
PROMPTS = [[11, 12, 13], [11], [14, 15, 16, 17, 18, 19], [12, 12]]


def expected(model: Any) -> torch.Tensor:
    """log p of each label behind each prompt, each read as a row of its own."""
    rows = []
    for prompt in PROMPTS:
        for label in LABELS:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *label]])).logits[0].double()
            logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            rows.append(logp[range(len(label)), list(label)].sum())
    return torch.stack(rows).view(len(PROMPTS), len(LABELS))


def measured(model: Any, **options: Any) -> torch.Tensor:
    likelihood = LabelLikelihood(model, Head.of(model), **options)
    results = dict(likelihood.log_likelihoods(PROMPTS, [LABELS] * len(PROMPTS)))
    return torch.stack([results[n] for n in range(len(PROMPTS))])


@pytest.mark.parametrize("batch_tokens", [1, 16, 2048])
def test_the_tree_gives_what_whole_rows_give(model: Any, batch_tokens: int) -> None:
    assert padding_free.takes_mask(model)
    got = measured(model, batch_tokens=batch_tokens, chunk_tokens=3, threads=2)
    torch.testing.assert_close(got, expected(model), rtol=1e-4, atol=1e-4)


def test_a_model_that_takes_no_mask_reads_every_label(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COHOBATE_FAST", "off")
    torch.testing.assert_close(measured(model), expected(model), rtol=1e-4, atol=1e-4)


def test_prompts_of_one_batch_have_the_same_labels(model: Any) -> None:
    likelihood = LabelLikelihood(model, Head.of(model))
    labels = [LABELS, LABELS[:2], LABELS, LABELS[:2]]
    results = dict(likelihood.log_likelihoods(PROMPTS, labels))
    for n, whole in enumerate(expected(model)):
        torch.testing.assert_close(results[n], whole[: len(labels[n])], rtol=1e-4, atol=1e-4)


def test_labels_of_the_same_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="same tokens"):
        LabelTree(((1, 2), (1, 2)))


def test_a_tree_reads_a_shared_beginning_once() -> None:
    assert LabelTree(LABELS).nodes == ((), (5,), (9,), (5, 6), (5, 6, 7))
