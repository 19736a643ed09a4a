"""Does the challenger answer more slowly than the champion? By the clock, outside the verdict.

The verdict of this stage must come out the same on every machine, and a time does not. So what is
timed goes to reports/latency.json, which nothing hashes, and whoever promotes (`iterate_rounds`)
asks `objection`. Students that are alike in all that is counted are not timed: they do the same
work, and chance must not decide between them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cohobate.data.records import Message, write_json
from cohobate.evaluation.timing import Timing
from cohobate.models.number_formats import Precision, resolve
from cohobate.params import Section

LATENCY = Path("reports/latency.json")
COUNTED = ("parameters", "flops_per_token", "blocks")
"""What latency is made of, as far as it can be counted."""


class Latency(Section):
    """How much slower than the champion a new student may answer, and how that is timed."""

    growth: float = Field(1.1, ge=1)
    """The most that the median time to answer one prompt may grow by, as a ratio."""
    timing: Timing = Timing(seconds=3)
    """Champion and challenger answer in turns, in one run on one machine."""

    def compare(
        self,
        folders: Mapping[str, Path],
        prompts: Sequence[str | tuple[Message, ...]],
        verdict: Path,
        *,
        precision: Precision,
        threads: int,
    ) -> None:
        """Time two checkpoints, `champion` and `challenger`, and write what came of it.

        `verdict` is the file to which the times belong.
        """
        import torch

        from cohobate.data.records import with_prefix
        from cohobate.data.tokenized import prompt_ids
        from cohobate.fast.frozen import load_frozen
        from cohobate.models import checkpoints

        torch.set_num_threads(threads)
        device = checkpoints.accelerator()
        models, asked = {}, {}
        for name, folder in folders.items():
            models[name], tokenizer = load_frozen(folder, precision=precision, device=device)
            prefix = checkpoints.prompt_prefix(folder)
            first = [with_prefix(prompt, prefix) for prompt in prompts[: self.timing.batch]]
            asked[name] = prompt_ids(tokenizer, first)
        found = self.timing.measure(models, asked)
        times = {f"{name}_ms": found["models"][name]["latency_ms_p50"] for name in folders}
        ratio = round(times["challenger_ms"] / times["champion_ms"], 4)
        about = {"machine": found["machine"], "threads": found["threads"]}
        about["number_format"] = resolve(precision, device)
        of = {"verdict": _digest(verdict)}
        write_json(LATENCY, of | times | {"ratio": ratio, "allowed": self.growth} | about)


def timed_apart(verdict: Mapping[str, Any]) -> bool:
    """Say whether a promotion hangs on the clock: the students differ in what is counted."""
    return verdict["promote"] and any(verdict["growth"][name] != 1 for name in COUNTED)


def objection(root: Path, verdict: Path) -> str | None:
    """Return why the clock speaks against a promotion, or None.

    None too where this verdict was never timed here, as it came out of a cache: what is counted
    then stands for it.
    """
    timed = root / LATENCY
    if not timed_apart(json.loads(verdict.read_text())) or not timed.exists():
        return None
    found = json.loads(timed.read_text())
    if found["verdict"] != _digest(verdict) or found["ratio"] <= found["allowed"]:
        return None
    times = f"{found['challenger_ms']:.1f} ms against {found['champion_ms']:.1f}"
    told = f"latency: {found['ratio']:.2f} times the champion's ({times})"
    return f"{told}, at most {found['allowed']:.2f} allowed"


def _digest(verdict: Path) -> str:
    """Return which verdict it is: the times of another one must not count."""
    return hashlib.blake2b(verdict.read_bytes(), digest_size=12).hexdigest()
