"""What CI and the image install is what pyproject.toml asks for, each file by its hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = PROJECT["project"]["dependencies"]
MORE = PROJECT["project"]["optional-dependencies"]
GROUPS = PROJECT["dependency-groups"]
DEV = [
    line
    for entry in GROUPS["dev"]
    for line in ([entry] if isinstance(entry, str) else GROUPS[entry["include-group"]])
]
EXPLAINED = "infra/vulnerabilities.md"
LOCKS = {
    "infra/requirements.txt": RUN,
    "infra/requirements-ci.txt": [*RUN, *MORE["export"], *MORE["harness"], *DEV],
}


def locked(path: str) -> dict[str, str]:
    """Return the version of each package; every one has a hash."""
    versions = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / path).read_text().strip()):
        pinned = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.+]+)", entry)
        assert pinned and "--hash=sha256:" in entry, entry
        versions[canonicalize_name(pinned[1])] = pinned[2]
    return versions


@pytest.mark.parametrize("path", LOCKS)
def test_every_requirement_is_locked_at_a_version_that_it_allows(path: str) -> None:
    versions = locked(path)
    for line in LOCKS[path]:
        requirement = Requirement(line)
        if requirement.name != "torch":  # each machine has a build of its own
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), line


def test_torch_is_pinned_where_the_lock_leaves_it_out() -> None:
    assert any(re.fullmatch(r"torch==[\d.]+", line) for line in RUN)
    assert not any("torch" in locked(path) for path in LOCKS)


def test_a_vulnerability_is_explained_only_while_its_package_is_locked() -> None:
    entries = re.findall(r"^\| `.+` \| ([\w.-]+) \|", (ROOT / EXPLAINED).read_text(), re.MULTILINE)
    assert entries
    assert set(entries) <= {"torch"}.union(*(locked(path) for path in LOCKS))
