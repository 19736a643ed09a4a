"""Rounds in git: a worktree while a round runs, a commit and a tag at its end.

The branch `rounds` (`ml/distil/rounds` where the project is the folder ml/distil) holds them in a
line. A round's tree is that of the commit it was made from (the user's code and params, with what
the round before decided written into params.yaml), and the files that rounds hand on: dvc.lock, the
champion and the prompts to replay, as DVC tracks them, and the reports.
`git checkout round-0007 && dvc pull && dvc repro` therefore has nothing to run.
"""

import fcntl
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cohobate.backends.ledger_storage import main_project
from cohobate.errors import UserError
from flows.git import git

WORKTREES = Path(".cohobate/rounds")
RECORD = Path("reports/round.json")
CARRIED_OVER = ("models/champion", "data/replay")
"""Folders that a round takes over from the one before, beside dvc.lock; git has the .dvc files."""
REPORTS = ("reports/metrics.json", "reports/challenge.json", "reports/report.md", RECORD.as_posix())


class RoundRecord(BaseModel):
    """Record of a round, `reports/round.json` of its commit."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int
    base: str
    """Commit whose code and params it used."""
    champion: str
    """Checkpoint of the champion after it: `models/champion/round-0003`, or
    models/init_student."""
    promoted: bool
    why: str
    next_batch: int
    """Which batch of new prompts comes next (`collect.split.batch`)."""
    updates: int
    """Optimiser steps of the champion, over all rounds that led to it."""
    dev: dict[str, Any]
    """Scores on the dev rows: champion, challenger, gain."""
    test: dict[str, Any]
    """Scores on the test rows: teacher, baseline, student, retention."""
    seconds: float
    """Sum of its stages' seconds, those of interrupted attempts included."""
    money: float = 0.0
    """US dollars that the teachers' ledgers grew by since the round before."""
    ledgers: dict[str, float] = {}
    """US dollars spent in each ledger by its end, unused ledgers included."""
    rolled_back_to: int | None = None
    """The round whose champion a person made current again."""


def name_of(number: int) -> str:
    """Return the name of a round."""
    return f"round-{number:04d}"


class History:
    """The rounds of a project, which may lie in a folder of a larger repository."""

    def __init__(self, root: Path) -> None:
        """Open the rounds of the project at `root`, which may be a git worktree of it."""
        self.here = root
        self.prefix = git(root, "rev-parse", "--show-prefix")
        """The project's folder in its repository, with a slash at its end; empty at the top."""
        self.root = main_project(root)
        parts = (re.sub(r"[^\w-]+", "-", part) for part in self.prefix.split("/"))
        self._refs = "/".join(parts)  # git's names of branches and tags take no space
        self.branch = f"{self._refs}rounds"

    def tag(self, number: int) -> str:
        """Return the tag of a round; projects of one repository have tags of their own."""
        return f"{self._refs}{name_of(number)}"

    def numbers(self) -> list[int]:
        """Return the finished rounds, oldest first."""
        start = f"{self._refs}round-"
        # exactly four digits: users may have tags of their own that begin alike
        tags = git(self.root, "tag", "--list", f"{start}[0-9][0-9][0-9][0-9]").split("\n")
        return sorted(int(tag.removeprefix(start)) for tag in tags if tag)

    def records(self) -> list[RoundRecord]:
        """Return the records of finished rounds, oldest first."""
        return [self.record(number) for number in self.numbers()]

    def record(self, number: int) -> RoundRecord:
        """Return the record of a round.

        Raises:
            UserError: there is no such round.
        """
        if number not in (known := self.numbers()):
            rounds = f"there are {known[0]} to {known[-1]}" if known else "there is none yet"
            raise UserError(f"there is no round {number}: {rounds}", fix="cohobate rounds")
        return RoundRecord.model_validate_json(self.file(number, RECORD.as_posix()))

    def file(self, number: int, path: str) -> str:
        """Return a file of the project as a round's commit has it."""
        return git(self.root, "show", f"{self.tag(number)}:./{path}")

    def last(self) -> RoundRecord | None:
        """Return the record at the branch's tip: of the last round, or of a rollback after it."""
        if not self._has_branch():
            return None
        text = git(self.root, "show", f"{self.branch}:./{RECORD.as_posix()}", check=False)
        return RoundRecord.model_validate_json(text) if text else None

    def unfinished(self) -> list[int]:
        """Return the rounds that started and did not end: their worktrees exist."""
        worktrees = (self.root / WORKTREES).glob("round-[0-9]*")
        numbers = {int(path.name.removeprefix("round-")) for path in worktrees}
        return sorted(numbers - set(self.numbers()))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the project's lock of rounds: one process at a time runs them.

        Raises:
            UserError: another process holds it.
        """
        with self._lock(fcntl.LOCK_EX, attempts=5) as held:
            if not held:
                message = "another process is running rounds here"
                fix = "wait until it has ended; cohobate rounds shows its state"
                raise UserError(message, where=str(self.root), fix=fix)
            yield

    def is_running(self) -> bool:
        """Return whether a process is running rounds here."""
        with self._lock(fcntl.LOCK_SH, attempts=1) as held:
            return not held

    @contextmanager
    def _lock(self, kind: int, attempts: int) -> Iterator[bool]:
        """Try to take the lock of rounds; yield whether it was taken."""
        path = self.root / WORKTREES / "lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        held = False
        with path.open("a") as file:
            while attempts and not held:
                attempts -= 1
                try:
                    fcntl.flock(file, kind | fcntl.LOCK_NB)
                    held = True
                except BlockingIOError:
                    time.sleep(0.1 if attempts else 0)
            yield held

    def open(self, base: str = "HEAD") -> tuple[int, Path, bool]:
        """Return the number of the next round, its workspace, and whether it resumes one.

        An interrupted round is resumed in its worktree, which is used as it is.

        Raises:
            UserError: there is no commit `base`, or it contains no project.
        """
        if died := self.unfinished():
            folder = self.workspace(died[0])
            self._carry_over(folder)  # it may have been killed while it replaced these
            return died[0], folder, True
        # tags decide, not the branch: a rollback adds a commit without a number
        number = max(self.numbers(), default=0) + 1
        commit = self._commit_of(base)
        if not self._has_branch():
            git(self.root, "branch", self.branch, commit)
        folder = self._worktree(number)
        building = folder.with_name(f".{folder.name}")  # renamed when it is complete
        git(self.root, "worktree", "remove", "--force", str(building), check=False)
        git(self.root, "worktree", "prune")
        git(self.root, "worktree", "add", "--quiet", "--detach", str(building), self.branch)
        # index and files become those of `commit`; HEAD stays at the round before
        git(building, "read-tree", "--reset", "-u", commit)
        git(building, "update-ref", "refs/worktree/base", commit)  # visible in this worktree alone
        project = building / self.prefix
        # with the last round's dvc.lock unchanged stages need not run
        git(project, "checkout", "--quiet", self.branch, "--", "dvc.lock", check=False)
        self._carry_over(project)
        git(self.root, "worktree", "move", str(building), str(folder))
        return number, self.workspace(number), False

    def _commit_of(self, base: str) -> str:
        """Return the hash of the commit that a round is to be made from."""
        commit = git(
            self.here, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}", check=False
        )
        commit_it = "git add --all && git commit -m 'the project'"
        if not commit and base == "HEAD":
            what = "the repository has no commit yet, and a round needs one"
            raise UserError(what, where=str(self.here), fix=commit_it)
        if not commit:
            fix = "git log --oneline --all; a shallow clone: git fetch --unshallow"
            raise UserError(f"there is no commit {base!r}", where=str(self.here), fix=fix)
        if not git(self.here, "ls-tree", commit, "./dvc.yaml"):
            what = f"commit {commit[:12]} has no dvc.yaml in {self.prefix or 'its top folder'}"
            raise UserError(what, where=str(self.here), fix=commit_it)
        return commit

    def base_of(self, workspace: Path) -> str:
        """Return the commit that a round's worktree was made from."""
        return git(workspace, "rev-parse", "refs/worktree/base")

    def workspace(self, number: int) -> Path:
        """Return where a round runs: the project's folder in a worktree of its own."""
        return self._worktree(number) / self.prefix

    def _worktree(self, number: int) -> Path:
        return self.root / WORKTREES / name_of(number)

    def close(self, workspace: Path, record: RoundRecord, message: str) -> str:
        """Commit the round, tag it, move the branch to it, and remove its worktree.

        The commit has two parents: the round before, and the commit that the round was made from.
        """
        commit = self._commit(workspace, record, message)
        tag = f"refs/tags/{self.tag(record.number)}"
        updates = f"create {tag} {commit}\nupdate refs/heads/{self.branch} {commit}\n"
        git(self.root, "update-ref", "--stdin", given=updates)  # both, or neither
        self._remove(self._worktree(record.number))
        return commit

    def _remove(self, worktree: Path) -> None:
        """Remove a worktree; its outputs are in DVC's cache."""
        git(self.root, "worktree", "remove", "--force", str(worktree))

    def roll_back(self, number: int) -> RoundRecord:
        """Make the champion of an earlier round current again: the next round starts from it."""
        earlier, last = self.record(number), self.last()
        assert last is not None
        with self._scratch() as workspace:
            for path in CARRIED_OVER:
                git(workspace, "rm", "-r", "--quiet", "--ignore-unmatch", "--", path)
                git(workspace, "checkout", "--quiet", self.tag(number), "--", path, check=False)
            why = f"rolled back to round {number}"
            back = {"champion": earlier.champion, "updates": earlier.updates, "promoted": False}
            record = last.model_copy(update={**back, "why": why, "rolled_back_to": number})
            commit = self._commit(workspace, record, f"Champion of {name_of(number)} again\n")
            git(self.root, "update-ref", f"refs/heads/{self.branch}", commit)
        return record

    def _commit(self, workspace: Path, record: RoundRecord, message: str) -> str:
        (workspace / RECORD).write_text(record.model_dump_json(indent=2) + "\n")
        git(workspace, "add", "--all", "--", ".")
        there = [path for path in REPORTS if (workspace / path).exists()]
        # --force: .gitignore may have them
        git(workspace, "add", "--force", "--", *there)
        tree = git(workspace, "write-tree")
        # one parent where both are the same commit, as in the first round
        parents = dict.fromkeys([git(self.root, "rev-parse", self.branch), record.base])
        arguments = [word for parent in parents for word in ("-p", parent)]
        return git(workspace, "commit-tree", tree, *arguments, given=message)

    def _carry_over(self, folder: Path) -> None:
        for path in CARRIED_OVER:
            shutil.rmtree(folder / path, ignore_errors=True)
            git(folder, "checkout", "--quiet", self.branch, "--", path, check=False)

    def _has_branch(self) -> bool:
        return bool(git(self.root, "branch", "--list", self.branch))

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = self.root / WORKTREES / ".scratch"
        git(self.root, "worktree", "remove", "--force", str(folder), check=False)
        git(self.root, "worktree", "prune")
        git(self.root, "worktree", "add", "--quiet", "--detach", str(folder), self.branch)
        try:
            yield folder / self.prefix
        finally:
            self._remove(folder)
