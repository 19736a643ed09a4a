"""The Ray node that a round starts: loopback alone, whatever the machine's variables say."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cohobate.errors import UserError
from flows import local_ray
from tests.tiny_project import ROOT

LONG = "scratch/users/someone/slurm_jobdir/0001234567/step_" + 40 * "0"
NODE = """\
import json, os, pathlib, psutil
from flows.placement import ray_cluster

with ray_cluster(pathlib.Path.cwd(), {}):
    import ray

    worker = ray.get(ray.remote(lambda: os.getpid()).remote())
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    assert worker in [process.pid for process in processes]
    sockets = [s for p in processes for s in p.net_connections("tcp") if s.status == "LISTEN"]
    print(json.dumps(sorted({s.laddr.ip for s in sockets})))
"""


@pytest.mark.round
def test_a_local_ray_listens_on_loopback_alone_with_a_long_tmpdir_a_proxy_and_no_home(
    tmp_path: Path,
) -> None:
    folder = tmp_path / LONG
    folder.mkdir(parents=True)
    home = tmp_path / "home"
    home.write_text("a file, so that nothing can be written below")
    unusual = {"TMPDIR": str(folder), "HOME": str(home), "http_proxy": "http://127.0.0.1:9"}
    dropped = ("RAY_ADDRESS", "RAY_TMPDIR", "NO_PROXY", "no_proxy")
    variables = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [sys.executable, "-c", NODE],
        cwd=ROOT,
        env=variables | unusual,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_temporary_folder_that_fits_is_kept_and_a_long_one_is_replaced(tmp_path: Path) -> None:
    chosen = local_ray.environment({"TMPDIR": "/tmp"})
    assert chosen["RAY_TMPDIR"] == "/tmp"
    folder = local_ray.environment({"TMPDIR": str(tmp_path / LONG)})["RAY_TMPDIR"]
    path = f"{folder}/ray/session_2026-11-29_16-36-45_123456_4194304/sockets/plasma_store"
    with socket.socket(socket.AF_UNIX) as probe:
        Path(path).parent.mkdir(parents=True)
        try:
            probe.bind(path)
        finally:
            Path(path).unlink(missing_ok=True)
            Path(path).parent.rmdir()
            Path(path).parent.parent.rmdir()


def test_a_ray_tmpdir_that_is_too_long_is_refused_with_a_short_one(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        local_ray.environment({"RAY_TMPDIR": str(tmp_path / LONG)})
    assert "at most" in refused.value.what and "export RAY_TMPDIR=/tmp" in refused.value.fix
