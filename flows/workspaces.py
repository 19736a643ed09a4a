"""Workspaces of stages on nodes that share no disk with the driver.

The driver copies the project's small files (all that git has or would add), and Ray brings them to
each node: the code that runs there is the round's, whatever the image contains. Data and models
travel through the DVC remote: the node pulls the stage's inputs, runs it, pushes its outputs, and
returns its entry of dvc.lock, which the driver merges into its own, byte for byte as if the stage
had run on the driver.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from cohobate import params
from cohobate.backends.ledger_storage import LEDGER, LEDGER_VARIABLE
from cohobate.dvc_bridge import storage, versioning
from cohobate.errors import UserError

WorkspaceKind = Literal["shared", "isolated"]
"""`shared`: nodes see the driver's folder. `isolated`: they do not."""
_CHANGING = ("dvc.lock", "reports")
_LARGEST = 4 * 2**20
_READ_PICTURES = ("assist", "train", "challenge", "hard_examples")
"""Stages that read pictures and do not depend on the whole of data/collect."""


@dataclass(frozen=True)
class StageBundle:
    """What a node needs to run one stage, beside the code; small."""

    project: str
    """Names the workspace: a hash of code and params."""
    files: dict[str, bytes]
    """dvc.lock and the reports, which change from stage to stage."""
    remotes: dict[str, dict[str, Any]]
    """Configuration of the DVC remotes; credentials come from the node's own environment."""
    default_remote: str


@dataclass(frozen=True)
class StageChanges:
    """Changes of a stage beside its outputs, which are on the remote."""

    entry: Any
    """Its entry in dvc.lock."""
    files: dict[str, bytes]
    """Reports, which git has and DVC does not cache."""


@contextmanager
def packed_code(root: Path) -> Iterator[Path]:
    """Yield a folder with a copy of the project's small files, which Ray copies to every node."""
    with TemporaryDirectory(prefix="cohobate-") as folder:
        for name in _small_files(root):
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)
        yield Path(folder)


def make_bundle(root: Path) -> StageBundle:
    """Return what a node needs to run a stage.

    Raises:
        UserError: the project has no DVC remote that other machines can reach.
    """
    default = storage.default_remote(root)
    found = storage.remotes(root)
    if not default or "://" not in str(found[default].get("url")):
        raise UserError(
            "nodes without a shared disk need a DVC remote that they can reach",
            where=".dvc/config",
            fix="dvc remote add --default s3 s3://bucket/prefix",
        )
    _check_ledger(root)
    return StageBundle(_fingerprint(root), changing_files(root), found, default)


def open_workspace(bundle: StageBundle, code: Path, address: str) -> Path:
    """Return the node's workspace for a stage; create it from `code` where it does not exist.

    Each stage has its own, so that parallel stages do not write the same dvc.lock; all share the
    node's DVC cache, also with the next round.
    """
    base = Path(os.environ.get("COHOBATE_WORKSPACES") or Path.home() / ".cache/cohobate/workspaces")
    root = base / bundle.project / address
    if not root.exists():
        # complete when it has its name: a killed worker leaves no half of a workspace
        building = root.with_name(f".{root.name}.{os.getpid()}")
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(code, building)
        where = bundle.remotes, bundle.default_remote
        storage.make_standalone(building, *where, cache=base / "dvc-cache")
        _share_ledger(building, base / "ledger")
        building.rename(root)
    # reports that the driver no longer has must not stay
    shutil.rmtree(root / "reports", ignore_errors=True)
    write_files(root, bundle.files)
    return root


def stages_with_its_inputs(root: Path, address: str) -> list[str]:
    """Return a stage, and those whose inputs it reads too: `collect` reads the data of all sources,
    of which the stages `sources` take fingerprints; and where rows have pictures, stages that train
    or run the student read those of data/collect, as `filter` does."""
    collect = params.load(root / params.PARAMS)["collect"]
    sources = collect.get("sources") or {}
    stages = [address, *(f"sources@{name}" for name in sources if address == "collect")]
    pictures = any(form.get("images") for form in [collect, *sources.values()])
    if pictures and address.partition("@")[0] in _READ_PICTURES:
        stages.append("filter")
    return stages


def collect_changes(root: Path, address: str, bundle: StageBundle) -> StageChanges:
    """Return what the driver needs to know after a stage ran on this node."""
    now = changing_files(root)
    changed = {name: held for name, held in now.items() if held != bundle.files.get(name)}
    return StageChanges(versioning.lock_entry(root, address), changed)


def merge_changes(root: Path, address: str, changes: StageChanges) -> None:
    """Merge the changes of a stage on its node into the driver's workspace."""
    # dvc.lock is merged by its entry: other stages have changed the driver's meanwhile
    reports = {name: content for name, content in changes.files.items() if name != "dvc.lock"}
    write_files(root, reports)
    versioning.merge_into_lock(root, address, changes.entry)


def write_files(root: Path, files: dict[str, bytes]) -> None:
    """Write small files into a workspace, each whole."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)


def changing_files(root: Path) -> dict[str, bytes]:
    """Return the content of dvc.lock and the reports."""
    found = {}
    for name in _CHANGING:
        path = root / name
        inside = path.rglob("*") if path.is_dir() else [path]
        for file in inside:
            if file.is_file() and file.stat().st_size <= _LARGEST:
                found[file.relative_to(root).as_posix()] = file.read_bytes()
    return found


def _check_ledger(root: Path) -> None:
    """Raise where nodes would buy answers without a shared ledger, and so twice.

    Raises:
        UserError: a teacher is behind an endpoint, and the ledger is not on S3.
    """
    document = params.load(root / "params.yaml")
    teachers, generate = document.get("teachers") or {}, document.get("generate") or {}
    bought = [key for key, teacher in teachers.items() if teacher.get("endpoint")]
    ledger = os.environ.get(LEDGER_VARIABLE) or generate.get("ledger", "")
    if bought and not ledger.startswith("s3://"):
        raise UserError(
            f"nodes without a shared disk buy the answers of the teacher {bought[0]}: their ledger "
            "must be on S3",
            where="params.yaml, generate.ledger",
            fix=f"export {LEDGER_VARIABLE}=s3://bucket/prefix",
        )


def _share_ledger(workspace: Path, folder: Path) -> None:
    """Have the stages of a node share one ledger, which outlives their workspaces."""
    folder.mkdir(parents=True, exist_ok=True)
    link = workspace / LEDGER
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder)


def _small_files(root: Path) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]
    return [name for name in names if not name.startswith(_CHANGING)]


def _fingerprint(root: Path) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for name in sorted(_small_files(root)):
        digest.update(f"{name}\0".encode() + (root / name).read_bytes())
    return digest.hexdigest()
