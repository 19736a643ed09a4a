"""Batched decoding on local models: prompts of like length together, finished rows leave the batch.

Prompts are sorted by length. Short answers (a class, a number) are decoded without padding or mask:
the prompts of a batch are read together up to the length of the shortest, and what longer ones have
more is fed token by token while shorter ones already generate, so that every row is at the same
position. Longer answers end at different times: there a batch is several times what is in memory at
once, and the next prompt takes the slot of a row that ended
(`cohobate.generation.continuous_batching`). Either way greedy answers are those of one-by-one
decoding (token-identical in float32; in bfloat16 a batch of another size can round differently, and
change an answer where two tokens are all but tied).

The output of a batch is a function of that batch alone. `plan_batches` cuts them so that dropping
whole batches leaves the others as they are: work resumed in whole batches repeats a clean run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cohobate.data.messages import Message
from cohobate.data.reasoning import opens_reasoning
from cohobate.data.tokenized import closing_ids, prompt_ids
from cohobate.generation.active_rows import COMPACT_BELOW, ActiveRow, append_signals, append_tokens
from cohobate.generation.requests import (
    Answer,
    Batching,
    Completion,
    Decoding,
    Request,
    split_reasoning,
)
from cohobate.generation.response_parsing import parse_calls
from cohobate.progress import advance_early

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHORT = 16  # tokens of an answer up to which the rows of a batch end at much the same time
_SPREAD = 32  # prompts of short answers differ in length by at most one token in so many,
_WIDE = 2  # those of longer answers by at most this factor
_REFILLS = 4  # requests per slot in a batch of longer answers
_OPENING = 16  # tokens at the end of a prompt among which a tag can open the reasoning


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

    On a CPU `threads` batches run at a time; the answers do not depend on it.
    """
    requests = plain_requests(tokenizer, prompts)
    for n, completion in generate_completions(
        model, tokenizer, requests, decoding, batching, threads=threads
    ):
        yield n, to_answer(tokenizer, completion, requests[n])


def plain_requests(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str | tuple[Message, ...]]
) -> list[Request]:
    """Return the requests of prompts, whose random numbers come from their positions."""
    pairs = zip(prompts, prompt_ids(tokenizer, prompts), strict=True)
    return [Request.of(prompt, ids, str(n)) for n, (prompt, ids) in enumerate(pairs)]


def generate_completions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    requests: Sequence[Request],
    decoding: Decoding,
    batching: Batching | None = None,
    *,
    threads: int = 1,
    measure: "Callable[[Tensor], Mapping[str, Tensor]] | None" = None,
) -> Iterator[tuple[int, Completion]]:
    """Yield (position in `requests`, completion), as `generate_answers` yields answers.

    `measure` is that of `decode_batch`.
    """
    from cohobate.thread_map import thread_map

    batching, stop = batching or Batching(), stop_ids(model, tokenizer)

    def run(batch: list[int]) -> list[Completion]:
        return decode_batch(
            model,
            [requests[n] for n in batch],
            decoding,
            stop,
            batching,
            measure=measure,
            on_finished=lambda *_: advance_early(),
        )

    batches = plan_batches(requests, decoding, batching)
    for batch, completions in thread_map(run, batches, threads):
        yield from zip(batch, completions, strict=True)


def plan_batches(
    requests: Sequence[Request], decoding: Decoding, batching: Batching, near: int = 0
) -> list[list[int]]:
    """Group requests into batches of like length, the short first; return their positions.

    Args:
        requests: prompts.
        decoding: how long the answers may be.
        batching: how many rows there may be at once.
        near: tokens by which the prompts of a batch may always differ.
    """
    order = sorted(range(len(requests)), key=lambda n: (len(requests[n].ids), n))
    batches: list[list[int]] = []
    for n in order:
        longest = len(requests[n].ids)
        # lengths rise along `order`: this request would be the longest of the batch
        most = batching.slots(longest, decoding) * (
            1 if decoding.max_tokens <= _SHORT else _REFILLS
        )
        # of the batch that is being filled: its first request
        shortest = len(requests[batches[-1][0]].ids) if batches else 0
        spread = shortest // _SPREAD if decoding.max_tokens <= _SHORT else shortest * (_WIDE - 1)
        if batches and len(batches[-1]) < most and longest - shortest <= max(spread, near):
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
    measure: "Callable[[Tensor], Mapping[str, Tensor]] | None" = None,
    on_finished: Callable[[int, Completion], None] | None = None,
) -> list[Completion]:
    """Generate the completions of one batch of requests.

    A prompt that fills the model's context gets an empty completion that ended by `length`.

    Args:
        model: any causal LM of transformers.
        requests: prompts of about the same length, as `plan_batches` groups them.
        decoding: how the next token is chosen.
        stop: ids that end a completion.
        batching: as for `plan_batches`.
        measure: returns what to keep of the distributions of the tokens, from their logits (B, V)
            at temperature 1 and before any are suppressed; it must leave the logits as they are.
        on_finished: gets each completion as it ends, by the position of its request.
    """
    import torch

    from cohobate.generation.continuous_batching import can_batch_continuously, decode_continuously
    from cohobate.generation.kv_cache import has_plain_cache
    from cohobate.models import seeing

    rows = [
        ActiveRow(request, _max_tokens(model, request, decoding), decoding) for request in requests
    ]
    active = [row for row in rows if row.max_tokens > 0]
    if not active:
        return [row.completion(stop) for row in rows]
    longest = max(len(row.prompt) + seeing.image_tokens(model, row.images) for row in active)
    slots = max(1, batching.slots(longest, decoding))
    pictures = any(row.images for row in active)

    append = _token_appender(
        suppression_bias(model), decoding, measure, _reporter(rows, stop, on_finished)
    )

    with torch.no_grad():  # in inference mode autocast would cast every weight anew for each token
        if not has_plain_cache(model):
            # a recurrent state depends on how a prompt is cut: one row after the other
            for row in active:
                _decode_without_cache(model, row, stop, append)
        elif decoding.max_tokens > _SHORT and not pictures and can_batch_continuously(model):
            decode_continuously(model, active, slots, lambda row: row.finished(stop), append)
        else:
            # rows with as many pictures are at one position of the cache
            for count in sorted({len(row.images) for row in active}):
                alike = [row for row in active if len(row.images) == count]
                for start in range(0, len(alike), slots):
                    _decode(model, alike[start : start + slots], stop, append)
    return [row.completion(stop) for row in rows]


def _reporter(
    rows: Sequence[ActiveRow],
    stop: frozenset[int],
    on_finished: Callable[[int, Completion], None] | None,
) -> Callable[[list[ActiveRow]], None]:
    """Return what passes the completions of those rows of a part that have ended on."""
    positions = {id(row): n for n, row in enumerate(rows)}

    def report(part: list[ActiveRow]) -> None:
        for row in part:
            if on_finished is not None and row.finished(stop):
                on_finished(positions[id(row)], row.completion(stop))

    return report


def _token_appender(
    bias_V: "Tensor | None",
    decoding: Decoding,
    measure: "Callable[[Tensor], Mapping[str, Tensor]] | None",
    report: Callable[[list[ActiveRow]], None],
) -> "Callable[[list[ActiveRow], Tensor], None]":
    """Return what chooses the next token of some rows by their logits (B, V), and appends it."""

    def append(part: list[ActiveRow], logits_BV: "Tensor") -> None:
        if measure is not None and part:
            # of the model as it is: suppressed ids are so in generation alone
            append_signals(part, measure(logits_BV))
        if bias_V is not None:
            # the head can have ids of padding, which the logits leave out
            logits_BV = logits_BV + bias_V[: logits_BV.shape[-1]]
        append_tokens(part, logits_BV, decoding)
        report(part)

    return append


def stop_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Return the ids that end an answer: the tokenizer's, its chat template's and those of the
    generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return closing_ids(tokenizer) | {n for n in ids if n is not None}


def to_answer(
    tokenizer: "PreTrainedTokenizerBase", completion: Completion, request: Request
) -> Answer:
    """Decode a completion to text without the id that ended it.

    Its reasoning goes to a field of its own, and so do calls of tools where they can be read.
    """
    if with_calls := parse_calls(tokenizer, completion, request):
        return with_calls
    ids = completion.ids[:-1] if completion.finish == "stop" else completion.ids
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    answer = Answer(text, completion.finish, completion.logprob)
    # cut off within reasoning that the prompt opened: nothing in the text says so
    cut = completion.finish == "length"
    opened = cut and opens_reasoning(tokenizer.decode(request.ids[-_OPENING:]))
    return split_reasoning(answer, opened=opened)


def _max_tokens(model: "PreTrainedModel", request: Request, decoding: Decoding) -> int:
    from cohobate.models import seeing

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    read = len(request.ids) + seeing.image_tokens(model, request.images)
    return min(decoding.max_tokens, (context or 1 << 62) - read)


def _decode(
    model: "PreTrainedModel",
    rows: list[ActiveRow],
    stop: frozenset[int],
    append: Callable[[list[ActiveRow], "Tensor"], None],
) -> None:
    """Decode rows that are all at one position of the cache: no padding, no mask."""
    import torch

    from cohobate.generation.kv_cache import preallocated_cache
    from cohobate.models import seeing

    cache = preallocated_cache(model)
    read = min(len(row.prompt) for row in rows)  # tokens in the cache after the next pass
    ids_BS = torch.tensor([row.prompt[:read] for row in rows], device=model.device)
    inputs = seeing.inputs_of(model, ids_BS, [row.images for row in rows])
    while True:
        out = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        # only rows whose prompt is read whole have logits of a next token
        ready = [n for n, r in enumerate(rows) if len(r.prompt) <= read and not r.finished(stop)]
        append([rows[n] for n in ready], out.logits[ready, -1].float())
        alive = [n for n, row in enumerate(rows) if not row.finished(stop)]
        if not alive:
            return
        if len(alive) <= COMPACT_BELOW * len(rows):  # each cut copies the cache: not at every step
            rows = [rows[n] for n in alive]
            cache.batch_select_indices(torch.tensor(alive, device=model.device))
        # a longer prompt goes on, a shorter one is followed by its own answer
        ids_B = [r.prompt[read] if len(r.prompt) > read else r.generated[-1] for r in rows]
        inputs = {"input_ids": torch.tensor(ids_B, device=model.device)[:, None]}
        read += 1


def _decode_without_cache(
    model: "PreTrainedModel",
    row: ActiveRow,
    stop: frozenset[int],
    append: Callable[[list[ActiveRow], "Tensor"], None],
) -> None:
    """Decode one request, with all of it as input for each token: slow, and right for any model."""
    import torch

    while not row.finished(stop):
        ids_BS = torch.tensor([row.prompt + row.generated], device=model.device)
        append([row], model(input_ids=ids_BS, use_cache=False).logits[:, -1].float())


def suppression_bias(model: "PreTrainedModel") -> "Tensor | None":
    """Return −∞ at the `suppress_tokens` of the model's generation config, 0 elsewhere, (V,).

    None without such tokens. A trimmed vocabulary has some (cohobate/students).
    """
    import torch

    suppressed = getattr(getattr(model, "generation_config", None), "suppress_tokens", None)
    if not suppressed:
        return None
    width = model.get_output_embeddings().weight.shape[0]
    bias_V = torch.zeros(width, device=model.device)
    bias_V[suppressed] = float("-inf")
    return bias_V
