"""Every name that the bridge imports from DVC or replaces in it: none is part of DVC's public API.

No other file imports `dvc`. `tests/cohobate/dvc_bridge/test_private_calls.py` tests for each name
that it exists, has the signature used here, and does what the bridge counts on, so that a new
release of DVC fails a test and not a round. The same test covers what is called on DVC's objects
(`Repo`, `Stage`, `Output`) in the other files of this package.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Command = Callable[..., None]
"""`(stage, dry=False, run_env=None)`: runs the command of a stage."""
LOCK_SECONDS = 0.3
"""Seconds in which DVC tries six times to take its lock. With its own 3 s it would sleep for half a
second after each try, while the stages of a round hold the lock for moments."""


class Errors(NamedTuple):
    """DVC's exceptions that the bridge tells apart."""

    any: type[Exception]
    """What all of DVC's own exceptions are subclasses of."""
    reproduction: type[Exception]
    """A stage failed; `__cause__` says why."""
    download: type[Exception]
    lock: type[Exception]
    """Another process holds a lock."""
    torn_lock_list: type[Exception]
    """`.dvc/tmp/rwlock` is not JSON."""
    yaml_syntax: type[Exception]
    yaml_schema: type[Exception]


def errors() -> Errors:
    """Return the exceptions; a function, because `import dvc` takes half a second."""
    from dvc.exceptions import DownloadError, DvcException, ReproductionError
    from dvc.lock import LockError
    from dvc.rwlock import RWLockFileCorruptedError
    from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError

    return Errors(
        DvcException,
        ReproductionError,
        DownloadError,
        LockError,
        RWLockFileCorruptedError,
        YAMLSyntaxError,
        YAMLValidationError,
    )


def open_repository(root: Path) -> Any:
    """Return DVC's `Repo` of a folder; it waits for its lock where another process holds it."""
    from dvc import lock
    from dvc.repo import Repo

    # read when a repository is made: it must be set before
    lock.DEFAULT_TIMEOUT = LOCK_SECONDS
    return Repo(str(root), _wait_for_lock=True)


def locked(repo: Any) -> AbstractContextManager[None]:
    """Hold the lock of a repository for a block; dvc.lock is read anew on entry."""
    from dvc.repo import lock_repo

    held: AbstractContextManager[None] = lock_repo(repo)
    return held


def run_order(graph: Any) -> list[Any]:
    """Return the nodes of a graph in the order in which `dvc repro` runs them."""
    from dvc.repo.reproduce import plan_repro

    order: list[Any] = plan_repro(graph)
    return order


@contextmanager
def command_replaced_by(run: Command) -> Iterator[Command]:
    """Let DVC call `run` where it would run a stage's shell command; yield what it called before.

    One function of DVC's is replaced for the whole process: a worker runs one stage at a time.
    """
    from dvc.stage import run as module

    before: Command = module.cmd_run
    module.cmd_run = run
    try:
        yield before
    finally:
        module.cmd_run = before


def load_yaml(path: Path) -> Any:
    """Return the content of a YAML file."""
    from dvc.utils.serialize import load_yaml as load

    return load(str(path))


def edit_yaml(path: Path) -> AbstractContextManager[Any]:
    """Yield the content of a YAML file, and write it back as DVC itself writes it."""
    from dvc.utils.serialize import modify_yaml

    edited: AbstractContextManager[Any] = modify_yaml(str(path))
    return edited


def configuration(folder: Path) -> Any:
    """Return DVC's configuration of a folder, which need not be a repository yet."""
    from dvc.config import Config

    return Config(str(folder / ".dvc"))
