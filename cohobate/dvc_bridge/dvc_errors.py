"""DVC's exceptions as `UserError`: DVC's own message, with a fix for each kind."""

import os
from pathlib import Path

from cohobate.errors import UserError

_FIXES = {
    "CyclicGraphError": "in dvc.yaml, or in the params that it interpolates: no stage may read "
    "what it writes itself, nor what a stage after it writes",
    "CircularDependencyError": "in dvc.yaml: remove the path from the stage's deps or its outs",
    "ArgumentDuplicationError": "in dvc.yaml: name the path once among the stage's deps and outs",
    "OutputDuplicationError": "in dvc.yaml: let one stage alone write that path, or give each "
    "stage a path of its own",
    "OverlappingOutputPathsError": "in dvc.yaml: no output may lie inside another; give each a "
    "folder of its own",
    "StagePathAsOutputError": "in dvc.yaml: an output may not hold the folder of dvc.yaml itself",
    "MissingDataSource": "put the file there: git checkout HEAD -- PATH, dvc pull PATH, or run the "
    "stage that writes it",
    "StageNotFound": "cohobate status   (lists the stages)",
    "ResolveError": "in params.yaml: add the key that dvc.yaml names, or remove it from dvc.yaml",
    "ParseError": "in dvc.yaml: correct the ${...} that it names",
    "OutputDoesNotExistError": "let the stage write all of its outs, or remove the path from "
    "dvc.yaml",
    "OutputIsIgnoredError": "remove the path from .dvcignore",
    "OutputAlreadyTrackedError": "git rm -r --cached PATH && git commit -m 'DVC keeps it'",
    "NotDvcRepoError": "git checkout HEAD -- .dvc   (or dvc init; below a repository's top: "
    "dvc init --subdir)",
    "SCMError": "git init && git add --all && git commit -m 'the project'",
    "CheckoutError": "dvc fetch && dvc checkout; where no remote has the files: cohobate run",
    "DownloadError": "check the remote with cohobate doctor, then repeat the command",
    "FileMissingError": "check that the remote has it: dvc status --cloud",
    "LockError": "wait until the other dvc or cohobate command has ended; cohobate doctor names it",
    "ConfigError": "correct .dvc/config, or ~/.config/dvc/config (dvc config --list --show-origin)",
    "RWLockFileFormatError": "when no other dvc or cohobate process runs in this project: "
    "rm .dvc/tmp/rwlock",
    "CacheLinkError": "dvc config cache.type copy",
}
"""Fixes by the name of DVC's exception class."""


def as_user_error(root: Path, error: BaseException) -> UserError:
    """Return an exception of DVC's with the fix of its kind.

    DVC often wraps the exception that matters: the innermost one that has a fix is reported.
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    fixable = [(cause, fix) for cause in reversed(chain) if (fix := _fix_of(cause))]
    cause, fix = fixable[0] if fixable else (chain[-1], "dvc doctor")
    return UserError(f"DVC: {' '.join(str(cause).split())}", where=str(root), fix=fix)


def missing_dependency(root: Path, address: str, error: FileNotFoundError) -> UserError:
    """Return the error of a dependency that does not exist: DVC raises `FileNotFoundError`."""
    path = os.path.relpath(error.filename or "", root)
    what = f"{address}: its dependency {path} does not exist"
    fix = _FIXES["MissingDataSource"].replace("PATH", path)
    return UserError(what, where=str(error.filename), fix=fix)


def _fix_of(error: BaseException) -> str | None:
    return next((_FIXES[k.__name__] for k in type(error).__mro__ if k.__name__ in _FIXES), None)
