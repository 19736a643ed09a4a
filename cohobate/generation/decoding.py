"""Batched decoding on local models: like lengths together, finished rows leave.

Prompts are sorted by length. Short answers (a class, a number) are written without padding or mask:
the prompts of a batch are read together up to the length of the shortest, and the few tokens that
longer ones have more are fed one by one while the shorter already write, so that every row sits at
the same position. Longer answers end at unlike times: there a batch is several times what is in
memory at once, and the next prompt takes the place of a row that ended
(`cohobate.generation.continuous_batching`). Either way greedy answers are those of one-by-one
decoding (token-identical in float32; in bfloat16 a batch of another size can round differently, and
turn an answer where two tokens are all but tied).

What a batch yields is a function of that batch alone. `plan` cuts batches so that dropping whole
batches leaves the others as they are: work resumed in whole batches repeats a clean run exactly.

Shapes: B rows still being written, S sequence, V vocabulary, K top-k.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from cohobate.data.records import Message
from cohobate.data.tokenized import prompt_ids
from cohobate.generation.active_rows import COMPACT_BELOW, ActiveRow, append_tokens
from cohobate.generation.requests import (
    Answer,
    Batching,
    Completion,
    Decoding,
    Request,
    split_reasoning,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHORT = 16  # tokens of an answer, up to which the rows of a batch end at much the same time
_SPREAD = 32  # prompts of short answers may differ in length by one token in so many,
_WIDE = 2  # those of longer ones by so many times
_REFILLS = 4  # times that a slot is taken in a batch of longer answers


def generate_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str | tuple[Message, ...]],
    decoding: Decoding,
    batching: Batching | None = None,
    *,
    threads: int = 1,
) -> Iterator[tuple[int, Answer]]:
    """Yield (position in `prompts`, answer), batch after batch, not in the order of `prompts`.

    On a CPU `threads` batches are answered side by side; the answers do not depend on it.
    """
    from cohobate.thread_map import thread_map

    batching = batching or Batching()
    requests = [Request(ids, str(n)) for n, ids in enumerate(prompt_ids(tokenizer, prompts))]
    stop = stop_ids(model, tokenizer)

    def write(batch: list[int]) -> list[Completion]:
        return decode_batch(model, [requests[n] for n in batch], decoding, stop, batching)

    batches = plan_batches(requests, decoding, batching)
    for batch, written in thread_map(write, batches, threads):
        yield from zip(batch, (to_answer(tokenizer, w) for w in written), strict=True)


def plan_batches(
    requests: Sequence[Request], decoding: Decoding, batching: Batching, near: int = 0
) -> list[list[int]]:
    """Return the positions of the requests of each batch: like lengths together, short first.

    Args:
        requests: prompts.
        decoding: how long the answers may be.
        batching: how many rows there may be at once.
        near: tokens by which the prompts of a batch may differ however short they are.
    """
    order = sorted(range(len(requests)), key=lambda n: (len(requests[n].ids), n))
    batches: list[list[int]] = []
    for n in order:
        longest = len(requests[n].ids)
        most = batching.slots(longest, decoding) * (
            1 if decoding.max_tokens <= _SHORT else _REFILLS
        )
        shortest = len(requests[batches[-1][0]].ids) if batches else 0
        alike = shortest // _SPREAD if decoding.max_tokens <= _SHORT else shortest * (_WIDE - 1)
        if batches and len(batches[-1]) < most and longest - shortest <= max(alike, near):
            batches[-1].append(n)
        else:
            batches.append([n])
    return batches


def decode_batch(
    model: "PreTrainedModel",
    requests: Sequence[Request],
    decoding: Decoding,
    stop: frozenset[int],
    batching: Batching,
    *,
    top_k: int = 0,
) -> list[Completion]:
    """Answer one batch of requests.

    A prompt that leaves no room in the model's context is answered with nothing (`length`).

    Args:
        model: any causal LM of transformers.
        requests: prompts of about the same length; what `plan` put together.
        decoding: how the next token is chosen.
        stop: ids that end an answer.
        batching: what `plan` was given.
        top_k: keep so many of the likeliest ids of every token written.
    """
    import torch

    from cohobate.generation.continuous_batching import can_batch_continuously, decode_continuously
    from cohobate.generation.kv_cache import has_plain_cache

    rows = [ActiveRow(request, _room(model, request, decoding), decoding) for request in requests]
    writing = [row for row in rows if row.room > 0]
    if not writing:
        return [row.completion(stop) for row in rows]
    slots = max(1, batching.slots(max(len(row.prompt) for row in writing), decoding))

    never_V = suppression_bias(model)

    def write(some: list[ActiveRow], logits_BV: "Tensor") -> None:
        if never_V is not None:
            logits_BV = logits_BV + never_V[: logits_BV.shape[-1]]
        append_tokens(some, logits_BV, decoding, top_k)

    with torch.no_grad():  # in inference mode autocast would cast every weight anew for each token
        if not has_plain_cache(model):
            for row in writing:
                _write_without_cache(model, row, stop, write)
        elif decoding.max_tokens > _SHORT and can_batch_continuously(model):
            decode_continuously(model, writing, slots, lambda row: row.finished(stop), write)
        else:
            for start in range(0, len(writing), slots):
                _write(model, writing[start : start + slots], stop, write)
    return [row.completion(stop) for row in rows]


def stop_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Return the ids that end an answer: the tokenizer's, and those the model was shipped with."""
    shipped = getattr(model.generation_config, "eos_token_id", None)
    several = shipped if isinstance(shipped, list) else [shipped]
    return frozenset(n for n in [tokenizer.eos_token_id, *several] if n is not None)


def to_answer(tokenizer: "PreTrainedTokenizerBase", written: Completion) -> Answer:
    """Return a completion as text, without the id that ended it, its reasoning apart."""
    ids = written.ids[:-1] if written.finish == "stop" else written.ids
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return split_reasoning(Answer(text, written.finish, written.logprob))


def _room(model: "PreTrainedModel", request: Request, decoding: Decoding) -> int:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(decoding.max_tokens, (context or 1 << 62) - len(request.ids))


def _write(
    model: "PreTrainedModel",
    rows: list[ActiveRow],
    stop: frozenset[int],
    write: Callable[[list[ActiveRow], "Tensor"], None],
) -> None:
    import torch

    from cohobate.generation.kv_cache import preallocated_cache

    cache = preallocated_cache(model)
    read = min(len(row.prompt) for row in rows)
    ids_BS = torch.tensor([row.prompt[:read] for row in rows], device=model.device)
    while True:
        out = model(input_ids=ids_BS, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ready = [n for n, r in enumerate(rows) if len(r.prompt) <= read and not r.finished(stop)]
        write([rows[n] for n in ready], out.logits[ready, -1].float())
        alive = [n for n, row in enumerate(rows) if not row.finished(stop)]
        if not alive:
            return
        if len(alive) <= COMPACT_BELOW * len(rows):  # each cut copies the cache: not at every step
            rows = [rows[n] for n in alive]
            cache.batch_select_indices(torch.tensor(alive, device=model.device))
        following = [r.prompt[read] if len(r.prompt) > read else r.written[-1] for r in rows]
        ids_BS = torch.tensor(following, device=model.device)[:, None]
        read += 1


def _write_without_cache(
    model: "PreTrainedModel",
    row: ActiveRow,
    stop: frozenset[int],
    write: Callable[[list[ActiveRow], "Tensor"], None],
) -> None:
    """Answer one request, all of it read anew for each token: slow, and right for any model."""
    import torch

    while not row.finished(stop):
        ids_BS = torch.tensor([row.prompt + row.written], device=model.device)
        write([row], model(input_ids=ids_BS, use_cache=False).logits[:, -1].float())


def suppression_bias(model: "PreTrainedModel") -> "Tensor | None":
    """Return −∞ at the ids that the model's generation configuration suppresses, 0 elsewhere.

    None where it suppresses nothing, as all models do whose vocabulary was never trimmed.
    """
    import torch

    manners = getattr(model, "generation_config", None)
    suppressed = getattr(manners, "suppress_tokens", None)
    if not suppressed:
        return None
    width = model.get_output_embeddings().weight.shape[0]
    never_V = torch.zeros(width, device=model.device)
    never_V[suppressed] = float("-inf")
    return never_V
