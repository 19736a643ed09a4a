"""Conversations to token ids and learnt tokens, beside TRL's way: conversations a second.

    python -m benchmarks.rendering [--rows 4000] [--repeat 3] [--check]

The tokenizer is the packaged SmolLM2's. The conversations are short: a question about a gloss of
WordNet and its answer; and, as `turns`, three exchanges of which all assistant turns are learnt.
TRL's way is `apply_chat_template` with a template that marks the assistant's turns, and
`return_assistant_tokens_mask`, over the same rows. Both run in turns in one process and one thread;
the median of the turns counts.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.outcome import parser, tell


def rows_of(count: int, exchanges: int) -> list[Any]:
    """Return conversations of so many exchanges."""
    from cohobate.data.messages import Message
    from cohobate.data.records import Row, row_id
    from tasks.collect.source_records import SourceRecord
    from tasks.collect.wordnet import WordNet

    glosses, rows = [], []
    for record in WordNet(type="wordnet").source_records():
        if isinstance(record, SourceRecord):
            glosses.append((record.columns["text"], record.columns["answer"]))
        if len(glosses) == count * exchanges:
            break
    for start in range(0, len(glosses), exchanges):
        turns: list[Message] = []
        for text, label in glosses[start : start + exchanges]:
            turns.append(Message(role="user", content=f"What category is this? {text}"))
            turns.append(Message(role="assistant", content=f"It is of the category {label}."))
        prompt = tuple(turns[:-1])
        learn = "all" if exchanges > 1 else None
        rows.append(Row(id=row_id(prompt), prompt=prompt, answer=turns[-1].content, learn=learn))
    return rows


def ours(tokenizer: Any, rows: Sequence[Any]) -> int:
    """Encode the rows; return the number of learnt tokens."""
    from cohobate.data.tokenized import encode_all

    return sum(b - a for row in encode_all(tokenizer, rows) for a, b in row.spans)


def trls(tokenizer: Any, rows: Sequence[Any]) -> int:
    """Encode the rows as SFTTrainer with `assistant_only_loss=True`; return the learnt tokens."""
    whole = "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    assert whole in tokenizer.chat_template
    # TRL has no training template for it: this one marks what TRL's ChatML templates mark
    marked = (
        "message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    )
    template = tokenizer.chat_template.replace(whole, marked)
    learnt = 0
    for row in rows:  # TRL maps over single examples
        messages = [*(turn.as_chat() for turn in row.prompt)]
        messages.append({"role": "assistant", "content": row.answer})
        processed = tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            chat_template=template,
        )
        learnt += sum(processed["assistant_masks"])
    return learnt


def seconds(work: Callable[[], int]) -> float:
    """Return the CPU seconds of some work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    """Print conversations a second of both, and their ratio."""
    options = parser(__doc__, "rendering")
    options.add_argument("--rows", type=int, default=4000)
    options.add_argument("--repeat", type=int, default=3)
    chosen = options.parse_args()
    from cohobate.models import checkpoints, hub

    tokenizer = checkpoints.load_tokenizer(hub.resolve(hub.PACKAGED))
    lines: list[dict[str, Any]] = []
    targets: dict[str, tuple[float, str, float]] = {}
    for name, exchanges in (("short", 1), ("turns", 3)):
        rows = rows_of(chosen.rows, exchanges)
        ours(tokenizer, rows[:100]), trls(tokenizer, rows[:100])  # templates are compiled
        runs = [
            (seconds(lambda: ours(tokenizer, rows)), seconds(lambda: trls(tokenizer, rows)))  # noqa: B023
            for _ in range(chosen.repeat)
        ]
        mine, peer = (len(rows) / median(run[side] for run in runs) for side in (0, 1))
        lines.append(
            {
                "conversations": name,
                "rows": len(rows),
                "ours, a second": mine,
                "TRL, a second": peer,
                "ratio": mine / peer,
                "learnt tokens": ours(tokenizer, rows),
                "TRL's": trls(tokenizer, rows),
            }
        )
        # of several learnt turns each is rendered twice, to be proved: TRL trusts the marks
        bound = 1.0 if exchanges == 1 else 0.7
        targets[f"{name}: ours against TRL"] = (mine / peer, ">=", bound)
    targets["short conversations a second"] = (lines[0]["ours, a second"], ">=", 5000.0)
    return tell(chosen, lines, targets)


if __name__ == "__main__":
    sys.exit(main())
