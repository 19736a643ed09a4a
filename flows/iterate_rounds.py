"""The flow of several rounds, one after the other: champion, challenger, gate, stop rules.

Each round runs in a git worktree of its own and ends as a commit and a tag on the branch `rounds`
(`flows/round_history.py`). `flows/next_round.py` derives its params from the round before. A round
that was interrupted is resumed: finished stages are kept.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger
from pydantic import BaseModel

from cohobate import params
from cohobate.dvc_bridge import storage, versioning
from cohobate.dvc_bridge.stale_lock import drop_stale_lock
from cohobate.errors import UserError
from flows import artifacts, next_round, overrides, params_schema, round_cost
from flows.distill_round import named_round
from flows.round_diff import outputs
from flows.round_history import History, RoundRecord, name_of
from flows.round_settings import Rounds, Stop
from flows.stop_rules import reason_to_stop
from flows.workspaces import WorkspaceKind

if TYPE_CHECKING:
    Params = BaseModel
else:  # the form that the UI shows is made of it
    Params = params_schema.partial_model()


@flow(flow_run_name="iterate from {base}", persist_result=False, log_prints=False)
def iterate_rounds(
    root: Path = Path(),
    rounds: int = 1,
    base: str = "HEAD",
    stop: Stop | None = None,
    workspace: WorkspaceKind = "shared",
    *,
    changes: Params | None = None,
) -> list[dict[str, Any]]:
    """Run rounds until the requested number is reached or a stop rule holds.

    Args:
        root: The project's folder: a git repository with dvc.yaml and params.yaml.
        rounds: Highest number of rounds.
        base: Commit or branch whose code and params a new round uses.
        stop: Rules that end the rounds earlier; `rounds.stop` of params.yaml when not given.
        workspace: `isolated` where the nodes of the cluster share no disk with `root`.
        changes: Keys of params.yaml to change in these rounds; their commits contain the changes.

    Returns:
        The record of each round, as in `reports/round.json`.

    Raises:
        UserError: another process runs rounds here, a stage failed, or not every object reached
            the DVC remote. The next run resumes the round.
    """
    history, done = History(root.absolute()), []
    with history.exclusive():
        for _ in range(rounds):
            if why := _reason_to_stop(history, stop):
                get_run_logger().info("no further round: %s", why)
                break
            done.append(one_round(history, base, workspace, changes).model_dump())
    return done


def one_round(
    history: History,
    base: str,
    workspace: WorkspaceKind = "shared",
    changes: BaseModel | None = None,
) -> RoundRecord:
    """Run the next round, or resume the interrupted one, to its commit and tag."""
    log = get_run_logger()
    last = history.last()
    number, worktree, died = history.open(base)
    log.info("%s %s in %s", "resuming" if died else "starting", name_of(number), worktree)
    if died:
        drop_stale_lock(worktree)
    # before any stage: outputs of earlier rounds are in the project's cache
    storage.share_storage(history.root, worktree)
    requested = overrides.apply_model(worktree, changes) if changes else []
    if not next_round.continues_champion(worktree, last):
        log.info("init_student differs from the champion's: the student starts from scratch")
    for change in [*requested, *next_round.write_round_params(worktree, last)]:
        log.info("params.yaml: %s", change)
    if files := next_round.take_traffic(history.root, worktree):
        log.info("%d files of kept prompts are read", files)
    named_round(name_of(number))(worktree, workspace=workspace)
    record = _conclude(history, number, worktree, last)
    if storage.absent_from_remote(worktree):  # a round that died between a stage and its push
        storage.push(worktree, [node.address for node in versioning.stages(worktree)])
    # a round is tagged only when the remote has all of it, so that any clone can restore it
    if absent := storage.absent_from_remote(worktree):
        names = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        fix = "dvc push, then cohobate resume"
        raise UserError(f"not on the DVC remote: {names}", where=str(worktree), fix=fix)
    verdict = next_round.verdict(worktree)
    commit = history.close(worktree, record, _message(record))
    artifacts.show_promotion(verdict, record, last)
    artifacts.show_lineage(record, history.tag(number), commit, outputs(history, number))
    log.info("%s is commit %s: %s", name_of(number), commit[:12], record.why)
    return record


def _conclude(
    history: History, number: int, worktree: Path, last: RoundRecord | None
) -> RoundRecord:
    """Promote the student or keep the champion, and return the record of the round."""
    verdict = next_round.verdict(worktree)
    before = last.champion if last else next_round.FIRST_CHAMPION
    # decided on the dev rows; the test rows are only reported
    champion = next_round.promote(worktree, number) if verdict["promote"] else before
    next_round.keep_hard_prompts(worktree, number)
    # a champion that stays keeps its count
    behind = last.updates if last else 0
    if verdict["promote"]:
        behind = next_round.updates_behind(worktree, last)
    metrics = json.loads((worktree / "reports/metrics.json").read_text())
    scores = {name: metrics[name] for name in ("teacher", "baseline", "student")}
    return RoundRecord(
        number=number,
        base=history.base_of(worktree),
        champion=champion,
        promoted=verdict["promote"],
        why=verdict["why"],
        next_batch=next_round.next_batch(worktree),
        updates=behind,
        dev={name: verdict[name] for name in ("champion", "challenger", "gain")},
        test=scores | {name: metrics[name] for name in ("retention", "retention_low")},
        **round_cost.totals(worktree, last),
    )


def _message(record: RoundRecord) -> str:
    student = record.test["student"]["score"]
    first = "promoted" if record.promoted else "champion kept"
    return (
        f"Round {record.number}: {first}\n\n{record.why}\n"
        f"test: student {student:.3f}, retention {record.test['retention'] or 0:.3f}\n"
    )


def _reason_to_stop(history: History, stop: Stop | None) -> str | None:
    document = params.load(history.here / params.PARAMS)
    params_schema.check(document)
    rules = stop or Rounds.model_validate(document["rounds"]).stop
    return reason_to_stop(rules, history.records())
