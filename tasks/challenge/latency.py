"""Latency of challenger and champion, measured outside the verdict.

The stage's verdict must be the same on every machine, and times are not. So they go to
reports/latency.json, which nothing hashes, and `iterate_rounds` calls `objection` before it
promotes. Students with equal counted figures are not timed: they do the same work, and noise must
not decide between them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cohobate.data.messages import Message
from cohobate.data.records import write_json
from cohobate.evaluation.timing import Timing
from cohobate.models.number_formats import Precision, resolve
from cohobate.params import Section

LATENCY = Path("reports/latency.json")
COUNTED = ("parameters", "flops_per_token", "blocks")
"""The figures that determine latency, as far as they can be counted."""


class Latency(Section):
    """How much slower than the champion a new student may be."""

    growth: float = Field(1.1, ge=1)
    """Largest ratio of the median times to answer one prompt."""
    timing: Timing = Timing(seconds=3)
    """How both are timed, in turns and in one run."""

    def compare(
        self,
        folders: Mapping[str, Path],
        prompts: Sequence[str | tuple[Message, ...]],
        verdict: Path,
        *,
        precision: Precision,
        threads: int,
    ) -> None:
        """Time two checkpoints, `champion` and `challenger`, and write reports/latency.json.

        `verdict` is the file that the times belong to.
        """
        import torch

        from cohobate.data.messages import with_prefix
        from cohobate.evaluation.model_under_test import open_model
        from cohobate.models import checkpoints

        torch.set_num_threads(threads)
        device = checkpoints.accelerator()
        models, inputs = {}, {}
        for name, folder in folders.items():
            tested = open_model(folder, precision)
            first = [with_prefix(prompt, tested.prefix) for prompt in prompts[: self.timing.batch]]
            models[name], inputs[name] = tested.model, tested.prompt_ids(first)
        timings = self.timing.measure(models, inputs)
        times = {f"{name}_ms": timings["models"][name]["latency_ms_p50"] for name in folders}
        ratio = round(times["challenger_ms"] / times["champion_ms"], 4)
        conditions = {"machine": timings["machine"], "threads": timings["threads"]}
        conditions["number_format"] = resolve(precision, device)
        source = {"verdict": _digest(verdict)}
        write_json(LATENCY, source | times | {"ratio": ratio, "allowed": self.growth} | conditions)


def timed_apart(verdict: Mapping[str, Any]) -> bool:
    """Return whether latency must be measured: the promoted student differs in counted figures."""
    return verdict["promote"] and any(verdict["growth"][name] != 1 for name in COUNTED)


def objection(root: Path, verdict: Path) -> str | None:
    """Return why latency forbids a promotion, or None.

    Also None where this verdict was not timed here because it came from a cache: the counted
    figures then decide alone.
    """
    timed = root / LATENCY
    if not timed_apart(json.loads(verdict.read_text())) or not timed.exists():
        return None
    measured = json.loads(timed.read_text())
    if measured["verdict"] != _digest(verdict) or measured["ratio"] <= measured["allowed"]:
        return None
    times = f"{measured['challenger_ms']:.1f} ms against {measured['champion_ms']:.1f}"
    slower = f"latency: {measured['ratio']:.2f} times the champion's ({times})"
    return f"{slower}, at most {measured['allowed']:.2f} allowed"


def _digest(verdict: Path) -> str:
    """Return a hash of the verdict, so that the times of another one do not count."""
    return hashlib.blake2b(verdict.read_bytes(), digest_size=12).hexdigest()
