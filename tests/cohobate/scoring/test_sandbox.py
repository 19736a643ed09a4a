"""Code of a model: what it may not do, and what becomes of a program that does not end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cohobate.errors import UserError
from cohobate.scoring import sandbox
from cohobate.scoring.sandbox import Sandbox
from cohobate.scoring.verifiers import Code

SMALL = Sandbox(seconds=1, wait_seconds=2, memory_mb=256, processes=4, file_mb=4)
TESTS = "assert double(2) == 4"
GOOD = "def double(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (GOOD, "passed"),
        ("def double(x):\n    return 3 * x", "AssertionError"),
        ("def triple(x): return 3 * x", "NameError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "no verdict"),
        ('import os\nos.write(1, b\'["", "passed"]\')\nos._exit(0)', "no verdict"),
        ("input()", "EOFError"),
        ("while True: pass", "stopped"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("import os\nwhile True: os.fork()", "BlockingIOError"),
        ("f = open('large', 'w')\nwhile True: f.write('a' * 1000000)", "OSError"),
        ("import os\nos.mkdir('a')\nopen('a/b', 'w').write('c')\n" + GOOD, "passed"),
    ],
)
def test_a_program_passes_or_says_why_not(code: str, verdict: str) -> None:
    assert SMALL.run(code, TESTS) == verdict


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', PORT), timeout=1)",
        "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=1)",
        f"open({str(Path.home())!r} + '/secret')",
        f"import os\nassert os.listdir({str(Path.home())!r}) == []",
        f"open({str(Path(__file__).resolve())!r})",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "import os\nos.environ['SECRET']",
        "open('/usr/written', 'w')",
        "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    ],
)
def test_a_program_sees_neither_network_nor_files_nor_environment(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "sk-1")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        code = code.replace("PORT", str(listening.getsockname()[1]))
        assert SMALL.run(code, "") not in ("passed", "stopped")


def test_what_a_program_started_ends_with_it() -> None:
    mark = f"{time.time_ns()}"
    orphan = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    os.execv(PYTHON, ['python', '-S', '-c', 'import time; time.sleep(60)  # {mark}'])\n"
        + GOOD
    ).replace("PYTHON", repr(os.path.realpath(sys.executable)))
    assert SMALL.run(orphan, TESTS) == "passed"
    # and one that also leaves its group, and asks not to be ended with its parent
    stubborn = (
        "import ctypes, os, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\nos.kill(0, 9)\n"
        f"time.sleep(60)  # {mark}"
    )
    start = time.monotonic()
    assert SMALL.run(stubborn, TESTS) == "stopped"
    assert time.monotonic() - start < 2 * SMALL.wait_seconds
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert mark not in left


def test_without_isolation_nothing_runs_unless_it_is_permitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    strict = SMALL.model_copy(update={"seconds": 2})  # not what the tests above remember
    with pytest.raises(UserError, match="cannot be isolated") as error:
        strict.check("params.yaml, task.verifier.sandbox")
    assert "isolation=limits" in error.value.fix
    permitted = strict.model_copy(update={"isolation": "limits"})
    assert permitted.run(GOOD, TESTS) == "passed"
    assert permitted.run("while True: pass", TESTS) == "stopped"
    assert permitted.run("import os\nos.environ['PATH'] + os.environ['SECRET']", "") == "KeyError"


def test_an_isolation_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, isolated: bool) -> str:
        raise OSError(1, "unshare : Operation not permitted")

    monkeypatch.setattr(sandbox, "_started", fails)
    with pytest.raises(UserError, match="unshare : Operation not permitted"):
        SMALL.model_copy(update={"seconds": 3}).check("params.yaml, task.verifier.sandbox")


def test_the_code_of_an_answer_is_its_last_block() -> None:
    code = Code(type="code", sandbox=SMALL)
    answer = "First:\n```python\nx = 1\n```\nBetter:\n```python\n" + GOOD + "```\nThat is all."
    assert code.code_in(answer) == GOOD.strip()
    assert code.correct(answer, TESTS)
    assert code.canonical(answer) == code.canonical("# twice\n" + GOOD.replace("2 * x", "(2*x)"))
    assert code.canonical("That is all.") is None
    assert code.verdict("That is all.", TESTS) == "SyntaxError"
    with_tests = f"{GOOD}# tests\n{TESTS}"
    assert code.correct(with_tests, with_tests)
    assert not code.correct("def double(x): return x\n# tests\nassert True", with_tests)
    assert not code.correct("", TESTS)
