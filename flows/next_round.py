"""What one round takes over from the one before: params, champion and prompts to replay."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from cohobate import params
from cohobate.data.records import VERDICT
from cohobate.dvc_bridge import storage
from cohobate.errors import UserError
from cohobate.serving.kept_prompts import TRAFFIC
from flows import overrides
from flows.round_history import History, RoundRecord
from flows.round_settings import Rounds
from flows.routing import traffic_sources
from flows.upgrade import renamed
from tasks.challenge.latency import objection
from tasks.hard_examples.stage import HARDEST

CHAMPION = Path("models/champion")
REPLAY = Path("data/replay")
FIRST_CHAMPION = "models/init_student"


def write_round_params(worktree: Path, last: RoundRecord | None) -> list[str]:
    """Set the params of a round that depend on the rounds before; return the changes.

    The student continues from the champion. The baseline still starts from the untrained student,
    with as many updates as the student has had in all rounds, so that both stay comparable. Where
    `init_student` differs from the champion's, the student starts from scratch and has to beat the
    champion. Prompts are the next batch, and the hardest of the round before.
    """
    document = params.load(worktree / params.PARAMS)
    check_champion_teaches(document)
    student, baseline = document["evaluate"]["student"], document["evaluate"]["baseline"]
    phases, chain = document["train"], continuing_chain(document["train"], student)
    rounds = Rounds.model_validate(document["rounds"])
    settings = [
        f"hard_examples.rows={rounds.replay}",
        f"collect.split.batch={last.next_batch if last else 0}",
    ]
    tracked = []
    if last and last.champion != FIRST_CHAMPION:
        settings.append(f"challenge.champion={last.champion}")
        earlier = updates_of(phases, chain_of(phases, baseline)[1:])
        if continues_champion(worktree, last):
            settings += [
                # the first phase of the chain starts from the champion; later ones follow it
                f"train.{chain[-1]}.from={Path(last.champion).relative_to('models')}",
                f"train.{baseline}.updates={last.updates + updates_of(phases, chain) - earlier}",
            ]
        if rounds.champion_teaches:
            settings += _as_teacher(last.champion, rounds.champion_teaches, document)
        tracked.append(Path(last.champion))
    if rounds.replay and (replay := _replay(worktree)):
        settings += [f"collect.replay.path={replay}", f"collect.replay.rows={rounds.replay}"]
        tracked.append(replay)
    changes = overrides.apply(worktree, settings)
    _keep_only(worktree, tracked)
    if tracked:
        storage.pull_tracked(worktree, tracked)
    return changes


def check_champion_teaches(document: dict[str, Any]) -> None:
    """Refuse a champion that would teach in the place of a teacher that is not there, or needed.

    Raises:
        UserError: there is no such teacher, or the student's layers are its.
    """
    key = document["rounds"].get("champion_teaches")
    if key is None:
        return
    where = "params.yaml, rounds.champion_teaches"
    teachers = document["teachers"]
    if key not in teachers:
        raise UserError(
            f"there is no teacher {key!r}{params.nearest(key, teachers)}",
            where=where,
            fix=f"name one of {', '.join(teachers)}",
        )
    if document["init_student"].get("teacher", "main") == key:
        raise UserError(
            f"the student's layers are those of {key}: with the champion in its place, the "
            "baseline would start from the champion",
            where=where,
            fix="a second teacher of the same model, such as `itself` of "
            "recipes/self-improvement.yaml",
        )


def _as_teacher(champion: str, key: str, document: dict[str, Any]) -> list[str]:
    """Return the settings by which the champion is a teacher, without tuning."""
    adapt = document["adapt"]["type"] != "none" or document["teachers"][key].get("adapt")
    settings = [f"teachers.{key}.model={champion}"]
    return [*settings, f"teachers.{key}.adapt={{type: none}}"] if adapt else settings


def take_traffic(root: Path, worktree: Path) -> int:
    """Copy the kept prompts of the traffic into a round that reads them; return how many files.

    The copy is the round's, tracked by DVC: prompts that arrive meanwhile are those of the next
    round. One that is resumed has its copy.

    Raises:
        UserError: none are kept.
    """
    if not traffic_sources(params.load(worktree / params.PARAMS)):
        return 0
    source, target = root / TRAFFIC, worktree / TRAFFIC
    if not target.exists():
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in sorted(source.glob("*.jsonl")):
            with suppress(FileNotFoundError):  # the oldest goes when a new one comes
                shutil.copyfile(path, partial / path.name)
        if not any(partial.iterdir()):
            raise UserError(
                "no prompts of the traffic are kept yet, and a source of collect reads them",
                where=str(source),
                fix="cohobate serve --route, with route.keep; or take it out of collect.sources",
            )
        partial.rename(target)
    storage.track(worktree, TRAFFIC)
    return len([*target.iterdir()])


def chain_of(phases: dict[str, Any], student: str) -> list[str]:
    """Return the phases that lead to the student, the last first."""
    chain = [student]
    while (start := phases[chain[-1]]["from"]).startswith("train/"):
        # the rest of the path is one of several models of a phase
        chain.append(start.split("/")[1])
    return chain


def continuing_chain(phases: dict[str, Any], student: str) -> list[str]:
    """Return the phases by which training continues from a champion, the last first.

    What gives labels or vectors does not become a masked model again.
    """
    chain = chain_of(phases, student)
    masked = [name for name in chain if phases[name]["method"] == "mlm"]
    return chain if student in masked else [name for name in chain if name not in masked]


def updates_of(phases: dict[str, Any], chain: list[str]) -> int:
    """Return the optimiser steps of a chain of phases."""
    return sum(phases[name].get("updates") or 0 for name in chain)


def continues_champion(worktree: Path, last: RoundRecord | None) -> bool:
    """Return whether `init_student` is the champion's, so that training continues from it."""
    if not last or not last.champion.startswith("models/champion/"):
        return True
    promoted_by = Path(last.champion).name
    number = int(promoted_by.removeprefix("round-"))
    text = History(worktree).file(number, params.PARAMS.as_posix())
    # params of that round may have the names of an older version
    then = renamed(params.parse(text, f"{promoted_by}:{params.PARAMS}"))
    return bool(then["init_student"] == params.load(worktree / params.PARAMS)["init_student"])


def updates_behind(worktree: Path, last: RoundRecord | None) -> int:
    """Return the optimiser steps behind a round's student: the champion's too, if it continues."""
    document = params.load(worktree / params.PARAMS)
    chain = chain_of(document["train"], document["evaluate"]["student"])
    before = last.updates if last and continues_champion(worktree, last) else 0
    return before + updates_of(document["train"], chain)


def verdict(worktree: Path) -> dict[str, Any]:
    """Return the result of the challenge; the measured latency may object to a promotion."""
    result: dict[str, Any] = json.loads((worktree / VERDICT).read_text())
    if slower := objection(worktree, worktree / VERDICT):
        result |= {"promote": False, "why": f"{result['why']}; {slower}"}
    return result


def promote(worktree: Path, number: int) -> str:
    """Make the round's best student the champion; return its path."""
    document = params.load(worktree / params.PARAMS)
    phase = document["evaluate"]["student"]
    student = Path("models/train") / phase / f"seed-{verdict(worktree)['seed']}"
    storage.pull_outputs(worktree, [f"train@{phase}"])  # it may have been trained on another node
    champion = CHAMPION / f"round-{number:04d}"
    _keep(worktree, champion, worktree / student)
    return champion.as_posix()


def keep_hard_prompts(worktree: Path, number: int) -> None:
    """Track the hardest prompts of this round for the next one."""
    storage.pull_outputs(worktree, ["hard_examples"])
    _keep(worktree, REPLAY / f"round-{number:04d}.jsonl", worktree / HARDEST)


def next_batch(worktree: Path) -> int:
    """Return which batch of new prompts the next round draws; sources begin again by themselves."""
    split = params.load(worktree / params.PARAMS)["collect"]["split"]
    return int(split.get("batch", 0)) + 1


def _keep(worktree: Path, path: Path, source: Path) -> None:
    """Track a copy of `source` as `path` with DVC."""
    target = worktree / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    storage.track(worktree, path)


def _keep_only(worktree: Path, used: list[Path]) -> None:
    """Delete the pointers that this round does not use; earlier commits keep them."""
    for folder in (CHAMPION, REPLAY):
        for pointer in (worktree / folder).glob("*.dvc"):
            if folder / pointer.stem not in used:
                pointer.unlink()


def _replay(worktree: Path) -> Path | None:
    found = sorted((worktree / REPLAY).glob("*.jsonl.dvc"))
    return REPLAY / found[-1].stem if found else None
