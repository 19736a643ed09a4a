"""Whole training loops, side by side with TRL's trainers.

    python -m benchmarks.train_loop [--answers wide] [--batch 8] [--repeat 3] [--check]

The teacher is the packaged model, the student some of its layers; the text is WordNet's, as
conversations, taken two ways: short answers (a definition asks for its category) and long ones (a
category asks for a definition). `wide` are the short ones with the vocabulary of both models
widened to 131,072 ids, as those of today are. Both sides see the same rows, batch sizes, number of
updates and number format (the processor's own), learn from the answers alone, train every weight,
attend in the way that is quickest for them on a CPU (TRL's eagerly), and run in a process of their
own with one thread. Tokens are those of prompt and answer, without padding; time is the CPU's in
`train()`. DistillationTrainer has the student answer for every update, as our on-policy phase does:
there the tokens are those written too. Batches are of 8 rows, which is TRL's default, and of 32,
which is the default round's. On a machine that others share `--repeat` takes turns and the median
of each loop.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from benchmarks.measuring import at_rest, in_own_process, machine, status, table

KINDS = ["long", "short", "wide"]
BATCHES = [8, 32]


class Loop(NamedTuple):
    """A training loop over rows of a kind, so many an update."""

    answers: str
    batch: int
    name: str


LOOPS = [
    Loop("long", 8, "trl sft padded"),
    Loop("long", 8, "trl sft packed"),
    Loop("long", 8, "ours sft"),
    Loop("long", 8, "trl gkd"),
    Loop("long", 8, "ours kd"),
    Loop("long", 32, "trl gkd"),
    Loop("long", 32, "ours kd"),
    Loop("short", 8, "trl gkd"),
    Loop("short", 8, "ours kd"),
    Loop("short", 32, "trl gkd"),
    Loop("short", 32, "ours kd"),
    Loop("wide", 8, "trl gkd"),
    Loop("wide", 8, "ours kd"),
    Loop("wide", 32, "trl gkd"),
    Loop("wide", 32, "ours kd"),
    Loop("short", 8, "trl distillation"),
    Loop("short", 8, "ours on-policy"),
]
TARGETS = [
    ("SFT, against TRL packed", "long", 8, "ours sft", "trl sft packed", 2.0),
    ("KD, against GKDTrainer", "long", 8, "ours kd", "trl gkd", 3.0),
    ("KD, against GKDTrainer", "long", 32, "ours kd", "trl gkd", 3.0),
    ("KD, against GKDTrainer", "short", 8, "ours kd", "trl gkd", 3.0),
    ("KD, against GKDTrainer", "short", 32, "ours kd", "trl gkd", 3.0),
    ("KD, against GKDTrainer", "wide", 8, "ours kd", "trl gkd", 8.0),
    ("KD, against GKDTrainer", "wide", 32, "ours kd", "trl gkd", 8.0),
    ("on-policy, DistillationTrainer", "short", 8, "ours on-policy", "trl distillation", 1.0),
]
WRITTEN = 16
LAYERS = [0, 1, 2, 3, 29]
WIDE = 131_072


def rows_of(answers: str, count: int) -> list[Any]:
    """Return rows of WordNet as conversations."""
    from cohobate.data.messages import Message
    from cohobate.data.records import Row, row_id
    from tasks.collect.source_records import SourceRecord
    from tasks.collect.wordnet import WordNet

    rows = []
    for example in WordNet(type="wordnet").source_records():
        if not isinstance(example, SourceRecord) or example.number % 29:  # from all over the file
            continue
        text, label = example.columns["text"], example.columns["answer"]
        if answers != "long":
            ask, answer = f"What category is this? {text}", label
        else:
            ask, answer = f"Define something of the category {label}.", text
        prompt = (Message(role="user", content=ask),)
        rows.append(Row(id=row_id(prompt), prompt=prompt, answer=answer, origin="ground_truth"))
        if len(rows) == count:
            return rows
    raise SystemExit(f"WordNet has {len(rows)} such rows, not {count}: fewer --updates")


def tokens_of(tokenizer: Any, rows: Sequence[Any]) -> int:
    """Return how many tokens the rows have."""
    from cohobate.data.tokenized import encode_all

    return sum(len(row.ids) for row in encode_all(tokenizer, rows))


def student(answers: str, attention: Literal["eager", "sdpa"] = "sdpa") -> tuple[Any, Any]:
    """Return some layers of the packaged model, and its tokenizer."""
    from cohobate.models import checkpoints, hub
    from cohobate.students.layer_cutting import keep_layers

    model, tokenizer = checkpoints.load(hub.resolve(hub.PACKAGED), attention=attention)
    keep_layers(model, LAYERS)
    return widened(model, answers), tokenizer


def teacher(answers: str, *, frozen: bool = False) -> Any:
    """Return the packaged model; `frozen`: as our stages load what only teaches."""
    from cohobate.fast.frozen import PACKED_BYTES
    from cohobate.fast.packed_linear import pack
    from cohobate.models import checkpoints, hub

    packaged = hub.resolve(hub.PACKAGED)
    model = widened(checkpoints.load(packaged, precision="auto")[0], answers)
    if frozen:
        pack(model, PACKED_BYTES)
    return model


def widened(model: Any, answers: str) -> Any:
    """Return the model with as many ids as `answers` asks for."""
    if answers == "wide":
        model.resize_token_embeddings(WIDE, mean_resizing=False)
    return model


def stock(loop: Loop, rows: Sequence[Any], updates: int) -> tuple[float, float]:
    """Run TRL's trainer; return its seconds and the tokens that it saw."""
    model, tokenizer = student(loop.answers, "eager")
    tokens: float = tokens_of(tokenizer, rows)
    with tempfile.TemporaryDirectory() as scratch:
        shared = {
            "output_dir": scratch,
            "per_device_train_batch_size": loop.batch,
            "max_steps": updates,
            "use_cpu": True,
            "bf16": machine()["number_format"] == "bfloat16",
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        kind, packed = loop.name.removeprefix("trl "), loop.name.endswith("packed")
        if packed:  # an update is one packed row, of as many tokens as the padded loop's update
            shared |= {"per_device_train_batch_size": 1}
        if kind in TAUGHT:
            trainer = TAUGHT[kind](model, teacher(loop.answers), tokenizer, rows, shared)
        else:
            trainer = sft(model, tokenizer, rows, shared, int(tokens // updates) if packed else 0)
        if packed:
            lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
            tokens = updates * sum(lengths) / len(lengths)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        if kind == "distillation":
            tokens = trainer.state.num_input_tokens_seen
        return seconds, tokens


def sft(model: Any, tokenizer: Any, rows: Sequence[Any], shared: Any, packed: int) -> Any:
    """Return SFTTrainer over prompts and completions; `packed`: tokens of a packed row, or 0."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [{"prompt": turns(row)[:1], "completion": turns(row)[1:]} for row in rows]
    )
    options = SFTConfig(**shared, max_length=packed or 256, packing=packed > 0)
    return SFTTrainer(model, args=options, train_dataset=data, processing_class=tokenizer)


def gkd(model: Any, taught_by: Any, tokenizer: Any, rows: Sequence[Any], shared: Any) -> Any:
    """Return GKDTrainer on given text, forward KL."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    data = Dataset.from_list([{"messages": turns(row)} for row in rows])
    options = GKDConfig(**shared, max_length=256, lmbda=0.0, beta=0.0)
    return GKDTrainer(
        model, taught_by, args=options, train_dataset=data, processing_class=tokenizer
    )


def distillation(
    model: Any, taught_by: Any, tokenizer: Any, rows: Sequence[Any], shared: Any
) -> Any:
    """Return DistillationTrainer: the student's own answers, reverse KL."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    data = Dataset.from_list([{"prompt": turns(row)[:1]} for row in rows])
    options = DistillationConfig(**shared, max_completion_length=WRITTEN, beta=1.0)
    return DistillationTrainer(
        model, taught_by, args=options, train_dataset=data, processing_class=tokenizer
    )


TAUGHT = {"gkd": gkd, "distillation": distillation}


def turns(row: Any) -> list[dict[str, str]]:
    """Return a row as a conversation of TRL's."""
    return [
        {"role": "user", "content": row.prompt[0].content},
        {"role": "assistant", "content": row.answer},
    ]


def ours(loop: Loop, rows: Sequence[Any], updates: int) -> tuple[float, float]:
    """Run our trainer; return its seconds and the tokens that it saw."""
    from cohobate.data.examples import common_prefix, examples_of
    from cohobate.data.tokenized import encode_all
    from cohobate.losses.divergences import ForwardKL, Hard, ReverseKL
    from cohobate.methods.rollout_settings import ConstantShare, Sampling
    from cohobate.methods.rollouts import StudentRollouts
    from cohobate.teachers.target_sources import LiveSource
    from cohobate.training.fused_trainer import FusedTrainer
    from cohobate.training.hyperparameters import Freeze, Hyperparameters
    from cohobate.training.trainer import fit

    model, tokenizer = student(loop.answers)
    examples = examples_of(rows, encode_all(tokenizer, rows))
    chosen = Hyperparameters(
        updates=updates, batch_size=loop.batch, threads=1, freeze=Freeze(embeddings=False)
    )
    size, options = model.config.vocab_size, {}
    terms: list[Any] = [Hard()]
    if loop.name != "ours sft":
        taught_by = teacher(loop.answers, frozen=True)
        live = LiveSource({"main": taught_by}, size, prefix_P=common_prefix(examples))
        options, terms = {"target_source": live}, [ForwardKL()]
    text = None
    if loop.name == "ours on-policy":
        terms = [ReverseKL()]
        how = Sampling.model_validate({"decoding": {"max_tokens": WRITTEN, "temperature": 1.0}})
        text = StudentRollouts(
            model, tokenizer, how, ConstantShare(share=1), seed=1, updates=updates,
            autocast=chosen.number_format == "bfloat16",
        )  # fmt: skip
    seconds = timed(FusedTrainer)
    fit(
        model, examples, terms, chosen,
        seed=1, label=loop.name, vocabulary=size, rollouts=text, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    if text is None:
        return seconds[0], tokens_of(tokenizer, rows)
    prompt_tokens = sum(row.prompt_length for row in examples)
    return seconds[0], prompt_tokens + text.counts["tokens of answers"]


def timed(trainer: Any) -> list[float]:
    """Have `train()` of a trainer's class note its seconds in what is returned."""
    train, seconds = trainer.train, []

    def noted(self: Any) -> Any:
        start = time.process_time()
        done = train(self)
        seconds.append(time.process_time() - start)
        return done

    trainer.train = noted
    return seconds


def measured(loop: Loop, updates: int) -> dict[str, float]:
    """Run one loop in this process, over so many rows that none comes twice."""
    import torch

    torch.set_num_threads(1)
    rows = rows_of(loop.answers, loop.batch * updates)
    at_rest()
    run = ours if loop.name.startswith("ours") else stock
    seconds, tokens = run(loop, rows, updates)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "peak_mb": status("VmHWM"),
    }


def main() -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=1, help="turns of all loops; medians count")
    parser.add_argument("--loop", choices=sorted({loop.name for loop in LOOPS}))
    parser.add_argument("--batch", type=int, choices=BATCHES, nargs="+", default=BATCHES)
    parser.add_argument("--answers", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--check", action="store_true", help="fail where a target does not hold")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/train_loop.json"))
    chosen = parser.parse_args()
    if chosen.loop:
        loop = Loop(chosen.answers[0], chosen.batch[0], chosen.loop)
        print(json.dumps(measured(loop, chosen.updates)))
        return 0
    selected = [x for x in LOOPS if x.answers in chosen.answers and x.batch in chosen.batch]
    figures_of: dict[Loop, list[dict[str, float]]] = {loop: [] for loop in selected}
    for loop in selected * chosen.repeat:
        arguments = ["--loop", loop.name, "--answers", loop.answers, "--batch", str(loop.batch)]
        one = in_own_process(__file__, [*arguments, "--updates", str(chosen.updates)])
        figures_of[loop].append(one)
        print(f"  {loop}: {one['seconds']:.1f} s", file=sys.stderr, flush=True)
    medians = {
        loop: {key: median(one[key] for one in some) for key in some[0]}
        for loop, some in figures_of.items()
    }
    keys = ["seconds", "tokens", "tokens_per_second", "peak_mb"]
    rows = [[*loop, *(figures[key] for key in keys)] for loop, figures in medians.items()]
    print(", ".join(machine().values()))
    print(table(["answers", "batch", "loop", "CPU s", "tokens", "tokens/s", "peak MB"], rows))
    judged = []
    for name, answers, batch, mine, peer, bound in TARGETS:
        if answers in chosen.answers and batch in chosen.batch:
            of = {loop: speed(medians[Loop(answers, batch, loop)]) for loop in (mine, peer)}
            ratio = of[mine] / of[peer]
            judged.append((name, answers, batch, ratio, bound, ratio >= bound))
    print(table(["target", "answers", "batch", "ratio", "wanted", "holds"], judged))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    loops = [loop._asdict() | figures for loop, figures in medians.items()]
    chosen.out.write_text(
        json.dumps({"machine": machine(), "loops": loops, "targets": judged}, indent=2) + "\n"
    )
    return 0 if all(row[-1] for row in judged) or not chosen.check else 1


def speed(figures: dict[str, float]) -> float:
    """Return tokens a second."""
    return figures["tokens_per_second"]


if __name__ == "__main__":
    sys.exit(main())
