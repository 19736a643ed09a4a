"""Signals of one row out of what a service sent: ids and log-probabilities at each learnt token.

Everything is checked before it counts. A row whose tokens are not exactly the service's, or whose
numbers cannot be log-probabilities, has no signals, and the reason is kept.
"""

# ruff: noqa: N815 (fields carry shape suffixes as tensors do)

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cohobate.backends.token_names import TokenIds
from cohobate.teachers.signal_store.packing import SMALLEST

_TOO_MUCH = 1e-3
"""By which a sum of probabilities may exceed 1, or a log-probability 0: services round."""
_CLOSING = 0.999
"""Probability of a closing token whose distribution the service leaves out."""
ServiceToken = tuple[str, float, Mapping[str, float]]
"""A token's name, its log-probability, and those of the likeliest tokens there."""


class NoSignalsError(Exception):
    """A row has no signals; the message is the reason."""


class RowSignals(NamedTuple):
    """The distributions at the S learnt tokens of a row: K ids of each, and one bucket for all
    others."""

    ids_SK: list[list[int]]
    logp_SK: list[list[float]]
    rest_S: list[float]
    """Log of the mass of all other ids."""
    closing_assumed: bool = False
    """Whether the service gave no distribution of the closing token, which then has nearly all
    the mass: the teacher ended its answer there."""

    def at(self, positions: Iterable[int]) -> "RowSignals":
        """Return the distributions at some of the tokens."""
        lists = zip(
            *((self.ids_SK[n], self.logp_SK[n], self.rest_S[n]) for n in positions), strict=True
        )
        ids, logps, rest = lists
        return RowSignals(list(ids), list(logps), list(rest), self.closing_assumed)


def row_signals(
    tokens: Sequence[ServiceToken],
    learnt: Sequence[int],
    vocabulary: TokenIds,
    requested: int,
    k: int,
) -> RowSignals:
    """Return the signals of a row.

    Args:
        tokens: what the service sent, token by token.
        learnt: the ids of the row's learnt tokens, the closing one included.
        vocabulary: of the tokenizer that stands for the teacher's.
        requested: log-probabilities that were requested at each token.
        k: how many of them are kept.

    Raises:
        NoSignalsError: the tokens are not the row's, or the numbers are impossible.
    """
    if not tokens:
        raise NoSignalsError("the service gave no log-probabilities")
    _check_tokens(tokens, learnt, vocabulary)
    places = []
    for token, number in zip(tokens, learnt, strict=False):  # the closing one may be missing
        check_numbers(token, min(requested, vocabulary.size))
        places.append(_place(token, number, vocabulary, k))
    closing_assumed = len(tokens) < len(learnt)
    if closing_assumed:
        places.append(_kept({learnt[-1]: math.log(_CLOSING)}, vocabulary.size, k))
    ids, logps, rest = zip(*places, strict=True)
    return RowSignals(list(ids), list(logps), list(rest), closing_assumed)


def _check_tokens(
    tokens: Sequence[ServiceToken], learnt: Sequence[int], vocabulary: TokenIds
) -> None:
    """Check that the tokens are the row's, but for a closing one that the service leaves out."""
    ids = [vocabulary.id_of(name) for name, _, _ in tokens]
    # some services give the closing token an empty text
    if len(ids) == len(learnt) and tokens[-1][0] == "":
        ids[-1] = learnt[-1]
    if ids in (list(learnt), list(learnt[:-1])):
        return
    if not vocabulary.texts_differ and None in ids:
        raise NoSignalsError(
            "the service names tokens by their text alone, which is not enough for this tokenizer"
        )
    at = next((n for n, pair in enumerate(zip(ids, learnt, strict=False)) if len({*pair}) > 1), -1)
    if at < 0:
        raise NoSignalsError(f"the service sent {len(ids)} tokens, the row has {len(learnt)}")
    raise NoSignalsError(f"token {at} is another one in the service's reply: {tokens[at][0]!r}")


def _place(
    token: ServiceToken, own: int, vocabulary: TokenIds, k: int
) -> tuple[list[int], list[float], float]:
    """Return ids, log-probabilities and the rest at one token."""
    name, logprob, others = token
    # the token itself is known by the row, whatever its name
    known = vocabulary.ids_of({other: lp for other, lp in others.items() if other != name})
    return _kept(known | {own: logprob}, vocabulary.size, k)


def check_numbers(token: ServiceToken, requested: int) -> None:
    """Check that the numbers at a token are log-probabilities, and as many as were requested.

    Raises:
        NoSignalsError: they are not.
    """
    name, logprob, others = token
    numbers = [logprob, *others.values()]
    if any(math.isnan(number) for number in numbers):
        raise NoSignalsError("a log-probability is not a number")
    if max(numbers) > _TOO_MUCH:
        raise NoSignalsError(f"a log-probability is above 0: {max(numbers):g}")
    if len(others) < requested:
        raise NoSignalsError(
            f"{len(others)} log-probabilities at a token, {requested} were requested"
        )
    mass = sum(map(math.exp, others.values())) + (0.0 if name in others else math.exp(logprob))
    if mass > 1 + _TOO_MUCH:
        raise NoSignalsError(f"the probabilities at a token sum to {mass:.4f}")


def _kept(logprobs: Mapping[int, float], size: int, k: int) -> tuple[list[int], list[float], float]:
    """Return the K likeliest ids; others fill up where fewer are known, out of the rest's mass.

    Each of these has an even share of it: next to nothing would be a statement that the service
    did not make, and a large reverse KL.
    """
    k = min(k, size)
    kept = sorted(logprobs, key=lambda token: (-logprobs[token], token))[:k]
    logps = [min(0.0, max(logprobs[token], SMALLEST)) for token in kept]
    left = max(1.0 - sum(map(math.exp, logps)), math.exp(SMALLEST))
    share = left / max(size - len(kept), 1)
    number, known = size - 1, set(kept)
    while len(kept) < k:
        # the highest ids of a vocabulary are the rarest
        if number not in known:
            kept.append(number)
            logps.append(max(math.log(share), SMALLEST))
            left -= share
        number -= 1
    return kept, logps, math.log(max(left, math.exp(SMALLEST)))
