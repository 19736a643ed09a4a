import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cohobate.backends import ledger_storage
from cohobate.errors import UserError
from flows.git import git
from flows.round_diff import differences
from flows.round_history import History, RoundRecord
from flows.round_settings import Stop
from flows.rounds_cli import iterate, rounds
from flows.stop_rules import reason_to_stop


@pytest.fixture(params=["", "ml/distil", "Völlig anders/mit Leerzeichen"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A project at the top of a repository, and in a folder of a larger one."""
    root = tmp_path / "project" / request.param
    (root / "tasks").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text("seeds: [1]\n")
    (root / "tasks/code.py").write_text("one\n")
    (root / ".gitignore").write_text("/.cohobate/\n/reports/*\n!/reports/metrics.json\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "project", check=True)
    commit(root, "base")
    return root


def commit(root: Path, message: str) -> str:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", message)
    return git(root, "rev-parse", "HEAD")


def record(number: int, base: str = "", promoted: bool = True, **more: Any) -> RoundRecord:
    dev = {"champion": 0.1, "challenger": 0.2, "gain": {"mean": 0.1, "low": 0.0, "high": 0.2}}
    scores = {"student": {"score": 0.5}, "retention": 0.9, "retention_low": 0.85}
    metrics = {
        "number": number, "base": base, "promoted": promoted, "why": "so", "updates": 10 * number,
        "champion": f"models/champion/round-{number:04d}", "next_batch": number, "dev": dev,
        "test": scores, "seconds": 60.0,
    }  # fmt: skip
    return RoundRecord(**(metrics | more))


def play(history: History, **more) -> int:
    """Run a round that writes a lock and a champion, as stages would."""
    number, worktree, _ = history.open()
    (worktree / "dvc.lock").write_text(
        f"stages: {{train: {{outs: [{{path: m, md5: a{number}{'0' * 30}}}]}}}}\n"
    )
    champion = worktree / "models/champion"
    for old in champion.glob("*.dvc"):
        old.unlink()
    champion.mkdir(parents=True, exist_ok=True)
    (champion / f"round-{number:04d}.dvc").write_text("outs: []\n")
    (worktree / "reports").mkdir(exist_ok=True)
    (worktree / "reports/metrics.json").write_text(f'{{"score": {number}}}')
    history.close(worktree, record(number, history.base_of(worktree), **more), "a round\n")
    return number


def test_a_round_is_a_commit_with_a_tag_between_its_base_and_the_round_before(root: Path) -> None:
    history = History(root)
    base = git(root, "rev-parse", "HEAD")
    assert [play(history), play(history)] == [1, 2]
    assert history.numbers() == [1, 2]
    first, second = history.tag(1), history.tag(2)
    assert git(root, "rev-parse", f"{second}^1") == git(root, "rev-parse", first)
    assert git(root, "rev-parse", f"{second}^2") == base
    assert git(root, "rev-parse", history.branch) == git(root, "rev-parse", second)
    assert git(root, "rev-parse", "HEAD") == base  # the user's branch is where it was
    assert git(root, "status", "--porcelain") == ""
    assert history.file(2, "dvc.lock").startswith("stages:")
    assert not history.workspace(1).exists()


def test_a_round_takes_the_users_newest_code_and_hands_its_champion_on(root: Path) -> None:
    history = History(root)
    play(history)
    (root / "tasks/code.py").write_text("two\n")
    commit(root, "newer code")
    _, worktree, _ = history.open()
    assert (worktree / "tasks/code.py").read_text() == "two\n"
    assert (worktree / "models/champion/round-0001.dvc").exists()
    assert (worktree / "dvc.lock").exists()


def test_a_killed_round_is_resumed_where_it_stopped(root: Path) -> None:
    history = History(root)
    play(history)
    number, worktree, died = history.open()
    assert not died
    (worktree / "dvc.lock").write_text("half way\n")
    for path in (worktree / "models/champion").iterdir():  # it died while it replaced this
        path.unlink()
    assert history.unfinished() == [2]
    assert history.open() == (number, worktree, True)
    assert (worktree / "dvc.lock").read_text() == "half way\n"
    assert (worktree / "models/champion/round-0001.dvc").exists()


def test_a_running_round_is_told_from_a_killed_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    history = History(root)
    history.open()
    assert not history.is_running()
    rounds()
    assert "round-0001 was interrupted: cohobate resume" in capsys.readouterr().out
    with history.exclusive():
        assert history.is_running()
        rounds()
        assert "round-0001 is running" in capsys.readouterr().out
        with pytest.raises(UserError, match="another process"):
            iterate(1)  # says so before there is a run of it on the server
    assert not history.is_running()
    with history.exclusive():  # whoever only looked is not in the way
        pass


def test_a_rollback_brings_the_champion_of_a_round_back(root: Path) -> None:
    history = History(root)
    play(history), play(history)
    back = history.roll_back(1)
    assert (back.champion, back.updates, back.rolled_back_to) == (
        "models/champion/round-0001",
        10,
        1,
    )
    assert history.numbers() == [1, 2]  # nothing is forgotten
    number, worktree, _ = history.open()
    assert number == 3
    assert [p.name for p in (worktree / "models/champion").glob("*.dvc")] == ["round-0001.dvc"]
    assert history.last() == back


def test_a_round_that_is_not_there_is_named(root: Path) -> None:
    history = History(root)
    with pytest.raises(UserError, match="no round 1: there is none yet"):
        history.record(1)
    play(history)
    with pytest.raises(UserError, match="there are 1 to 1"):
        history.roll_back(7)


def test_two_rounds_are_compared_by_params_scores_and_outputs(root: Path) -> None:
    history = History(root)
    play(history)
    (root / "params.yaml").write_text("seeds: [1, 2]\n")
    commit(root, "two seeds")
    play(history)
    changes = differences(history, 1, 2)
    assert changes["params"] == {"seeds": ([1], [1, 2])}
    assert changes["scores"] == {"score": (1, 2)}
    assert changes["stages"] == {"train m": ("a1" + "0" * 30, "a2" + "0" * 30)}


@pytest.mark.parametrize(
    ("stop", "rounds", "why"),
    [
        (Stop(), [record(1)], None),
        (Stop(retention=0.8), [record(1)], "keeps 0.850"),
        (Stop(retention=0.8), [record(1, promoted=False)], None),
        (Stop(retention=0.9), [record(1)], None),
        (Stop(without_gain=2), [record(1, promoted=False)], None),
        (Stop(without_gain=2), [record(1), record(2, promoted=False)], None),
        (Stop(without_gain=1), [record(1), record(2, promoted=False)], "1 rounds in a row"),
        (Stop(hours=0.5), [record(n, seconds=1000.0) for n in (1, 2)], "0.6 hours"),
        (Stop(money=3), [record(n, money=1.6) for n in (1, 2)], "3.20 USD are spent"),
        (Stop(money=3), [], None),
    ],
)
def test_when_rounds_end(stop: Stop, rounds: list[RoundRecord], why: str | None) -> None:
    reason = reason_to_stop(stop, rounds)
    assert reason is None if why is None else why in str(reason)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A project at the top of a repository."""
    root = tmp_path / "top"
    root.mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / ".gitignore").write_text("/.cohobate/\n/reports/*\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    commit(root, "base")
    return root


def test_rounds_of_a_submodule_lie_in_its_folder(top: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=outer, check=True)
    add = ["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(top), "ml/distil"]
    git(outer, *add)
    history = History(outer / "ml/distil")
    _, workspace, _ = history.open()
    assert workspace == outer / "ml/distil/.cohobate/rounds/round-0001"
    assert History(workspace).root == outer / "ml/distil"
    assert ledger_storage.main_project(workspace) == outer / "ml/distil"


def test_a_linked_worktree_shares_the_rounds_and_gives_them_its_own_code(
    top: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    git(top, "worktree", "add", "--quiet", "--detach", str(linked))
    (linked / "code.py").write_text("newer\n")
    newer = commit(linked, "newer")
    history = History(linked)
    _, workspace, _ = history.open()
    assert workspace == top / ".cohobate/rounds/round-0001"
    assert history.base_of(workspace) == newer


def test_projects_of_one_repository_have_rounds_of_their_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "dvc.yaml").write_text("stages: {}\n")
        (tmp_path / "all" / name / ".gitignore").write_text("/.cohobate/\n/reports/*\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "all", check=True)
    commit(tmp_path / "all", "base")
    one, two = (History(tmp_path / "all" / name) for name in ("one", "two"))
    play(one), play(one), play(two)
    assert (one.numbers(), two.numbers()) == ([1, 2], [1])
    assert one.record(1).number == 1 and two.last() == two.record(1)
    assert sorted(git(one.root, "tag").split()) == [
        "one/round-0001",
        "one/round-0002",
        "two/round-0001",
    ]


def test_what_git_lacks_or_refuses_comes_with_its_fix(
    tmp_path: Path, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path, base: str = "HEAD") -> UserError:
        with pytest.raises(UserError) as error:
            History(folder).open(base)
        return error.value

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "git init" in refused(empty).fix
    subprocess.run(["git", "init", "-q"], cwd=empty, check=True)
    assert "no commit yet" in refused(empty).what
    assert "no commit 'nightly'" in refused(top, "nightly").what
    (empty / "readme").write_text("no project")
    commit(empty, "no project")
    assert "has no dvc.yaml" in refused(empty).what
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git is not installed" in refused(top).what


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_a_repository_of_another_owner_is_refused_with_gits_own_fix(top: Path) -> None:
    for path in (top, top / ".git"):
        os.chown(path, 12345, 12345)
    with pytest.raises(UserError) as refused:
        History(top)
    assert f"safe.directory '{top}'" in refused.value.fix


def test_rounds_are_committed_where_git_knows_no_name(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git(top, "config", "user.email", "me@example.org")
    git(top, "config", "user.useConfigOnly", "true")
    history = History(top)
    play(history)
    author = git(top, "log", "-1", "--format=%an %ae", history.tag(1))
    assert author == "cohobate me@example.org"
