"""Worktrees of a search's trials, and the DVC experiments that remain of them.

Every trial runs in a git worktree of its own, made of the commit at which the search began. All
share the project's cache, so that what trials have in common runs once. At its end a trial becomes
a DVC experiment (`dvc exp show`, `dvc exp apply`): a commit that `refs/exps` names, as DVC itself
keeps them.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cohobate.backends.ledger_storage import main_project
from cohobate.dvc_bridge import storage
from cohobate.errors import UserError
from flows.git import git

SEARCHES = Path(".cohobate/searches")


class SearchFolders:
    """The folder of one search, `.cohobate/searches/<name>`, and its worktrees."""

    def __init__(self, root: Path, name: str) -> None:
        """Open the search `name` of the project at `root`."""
        self.root, self.name = main_project(root), name
        self.prefix = git(root, "rev-parse", "--show-prefix")
        self.folder = self.root / SEARCHES / name
        self.folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the search's lock for a block: one process at a time runs it.

        Raises:
            UserError: another process holds it.
        """
        with (self.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fix = "wait until it has ended; cohobate search show says how far it is"
                raise UserError(
                    f"another process runs the search {self.name}", where=str(self.folder), fix=fix
                ) from None
            yield

    def open(self, trial: str, base: str) -> Path:
        """Return the worktree of a trial, that of a process which died as it was left."""
        worktree = self.folder / trial
        if not worktree.exists():
            building = worktree.with_name(f".{trial}")  # renamed when it is complete
            git(self.root, "worktree", "remove", "--force", str(building), check=False)
            git(self.root, "worktree", "prune")
            git(self.root, "worktree", "add", "--quiet", "--detach", str(building), base)
            git(self.root, "worktree", "move", str(building), str(worktree))
        storage.share_storage(self.root / self.prefix, worktree / self.prefix)
        return worktree / self.prefix

    def experiment(self, trial: str) -> str:
        """Return the name of a trial's experiment."""
        return f"{self.name}-{trial}"

    def save(self, trial: str, base: str, message: str, worktree: str = "") -> str:
        """Make a trial's worktree, or another's, the experiment of its name; return the commit."""
        folder = self.folder / (worktree or trial) / self.prefix
        git(folder, "add", "--all", "--", ".")
        reports = sorted(str(p.relative_to(folder)) for p in folder.glob("reports/*.json"))
        if reports:
            git(folder, "add", "--force", "--", *reports)  # .gitignore may have them
        tree = git(folder, "write-tree")
        commit = git(folder, "commit-tree", tree, "-p", base, given=message)
        reference = f"refs/exps/{base[:2]}/{base[2:]}/{self.experiment(trial)}"
        git(self.root, "update-ref", reference, commit)
        return commit

    def remove(self, trial: str) -> None:
        """Remove a trial's worktree; its outputs are in DVC's cache."""
        git(self.root, "worktree", "remove", "--force", str(self.folder / trial), check=False)
