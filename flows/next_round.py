"""How one round follows from the one before: what params.yaml says, who becomes champion."""

import json
import shutil
from pathlib import Path
from typing import Any

from cohobate import params
from cohobate.data.records import VERDICT
from cohobate.dvc_bridge import storage
from flows import overrides
from flows.round_history import History, RoundRecord
from flows.round_settings import Rounds
from flows.upgrade import renamed
from tasks.challenge.latency import objection
from tasks.hard_examples.stage import HARDEST

CHAMPION = Path("models/champion")
REPLAY = Path("data/replay")
FIRST_CHAMPION = "models/init_student"


def write_round_params(worktree: Path, last: RoundRecord | None) -> list[str]:
    """Write into a round's params.yaml what the rounds before decided; return the changes.

    The student goes on from the champion; the baseline still starts from the student that was
    taught nothing, with as many updates as lie behind the student by now: equal, however many
    rounds there were. Where params.yaml asks for a student of another shape than the champion's,
    that one begins anew, and has the champion to beat. Prompts are the next batch, and those that
    were hardest.
    """
    document = params.load(worktree / params.PARAMS)
    student, baseline = document["evaluate"]["student"], document["evaluate"]["baseline"]
    chain = chain_of(document["train"], student)
    rounds = Rounds.model_validate(document["rounds"])
    settings = [
        f"hard_examples.rows={rounds.replay}",
        f"collect.split.batch={last.next_batch if last else 0}",
    ]
    tracked = []
    if last and last.champion != FIRST_CHAMPION:
        settings.append(f"challenge.champion={last.champion}")
        if continues_champion(worktree, last):
            settings += [
                f"train.{chain[-1]}.from={Path(last.champion).relative_to('models')}",
                f"train.{baseline}.updates={updates_behind(worktree, last)}",
            ]
        tracked.append(Path(last.champion))
    if rounds.replay and (replay := _replay(worktree)):
        settings += [f"collect.replay.path={replay}", f"collect.replay.rows={rounds.replay}"]
        tracked.append(replay)
    changes = overrides.apply(worktree, settings)
    _keep_only(worktree, tracked)
    if tracked:
        storage.pull_tracked(worktree, tracked)
    return changes


def chain_of(phases: dict[str, Any], student: str) -> list[str]:
    """Return the phases that lead to the student, the last first."""
    chain = [student]
    while (start := phases[chain[-1]]["from"]).startswith("train/"):
        chain.append(start.split("/")[1])  # what follows is a model trained beside
    return chain


def updates_of(phases: dict[str, Any], chain: list[str]) -> int:
    """Return the optimiser steps of a chain of phases."""
    return sum(phases[name].get("updates") or 0 for name in chain)


def continues_champion(worktree: Path, last: RoundRecord | None) -> bool:
    """Say whether the champion is of the shape asked for, so that learning goes on in it."""
    if not last or not last.champion.startswith("models/champion/"):
        return True
    promoted_by = Path(last.champion).name
    number = int(promoted_by.removeprefix("round-"))
    text = History(worktree).file(number, params.PARAMS.as_posix())
    then = renamed(params.parse(text, f"{promoted_by}:{params.PARAMS}"))
    return bool(then["init_student"] == params.load(worktree / params.PARAMS)["init_student"])


def updates_behind(worktree: Path, last: RoundRecord | None) -> int:
    """Return the optimiser steps behind a round's student: the champion's too, if it goes on."""
    document = params.load(worktree / params.PARAMS)
    chain = chain_of(document["train"], document["evaluate"]["student"])
    before = last.updates if last and continues_champion(worktree, last) else 0
    return before + updates_of(document["train"], chain)


def verdict(worktree: Path) -> dict[str, Any]:
    """Return what the challenge came to, the clock's objection included."""
    found: dict[str, Any] = json.loads((worktree / VERDICT).read_text())
    if slower := objection(worktree, worktree / VERDICT):
        found |= {"promote": False, "why": f"{found['why']}; {slower}"}
    return found


def promote(worktree: Path, number: int) -> str:
    """Make the round's best student the champion; return its path."""
    document = params.load(worktree / params.PARAMS)
    phase = document["evaluate"]["student"]
    student = Path("models/train") / phase / f"seed-{verdict(worktree)['seed']}"
    storage.pull_outputs(worktree, [f"train@{phase}"])  # it was perhaps trained elsewhere
    champion = CHAMPION / f"round-{number:04d}"
    _keep(worktree, champion, worktree / student)
    return champion.as_posix()


def keep_hard_prompts(worktree: Path, number: int) -> None:
    """Keep the prompts on which the student is furthest off, for the next round."""
    storage.pull_outputs(worktree, ["hard_examples"])
    _keep(worktree, REPLAY / f"round-{number:04d}.jsonl", worktree / HARDEST)


def next_batch(worktree: Path) -> int:
    """Return which batch of new prompts the next round draws; the first again after the last."""
    split = params.load(worktree / params.PARAMS)["collect"]["split"]
    summary = json.loads((worktree / "data/collect/summary.json").read_text())
    batch, size = split.get("batch", 0), split["unlabelled"]
    left = summary["unused"] - batch * size
    return batch + 1 if left >= size else 0


def _keep(worktree: Path, path: Path, source: Path) -> None:
    """Track a copy of `source` as `path`, beside what the round itself came from."""
    target = worktree / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    storage.track(worktree, path)


def _keep_only(worktree: Path, used: list[Path]) -> None:
    """Forget what the round before used and this one does not; its own commit still has it."""
    for folder in (CHAMPION, REPLAY):
        for pointer in (worktree / folder).glob("*.dvc"):
            if folder / pointer.stem not in used:
                pointer.unlink()


def _replay(worktree: Path) -> Path | None:
    found = sorted((worktree / REPLAY).glob("*.jsonl.dvc"))
    return REPLAY / found[-1].stem if found else None
