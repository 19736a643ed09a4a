"""Program that isolates and limits itself, then becomes an interpreter that runs an answer.

`python sandbox_child.py SETTINGS`, SETTINGS being JSON; it imports the standard library alone. On
standard input: `{"nonce": ..., "code": ..., "tests": ...}`. On standard output: `[nonce, "passed"]`
or the name of what was raised in place of `passed`; nothing where the process was stopped.

The end 97 says that the isolation failed, with the reason on standard error.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

FAILED = 97
_NEWNS, _NEWUTS, _NEWIPC = 0x20000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
_REC, _PRIVATE = 16384, 1 << 18
_PDEATHSIG, _NO_NEW_PRIVS = 1, 38
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/nix", "/etc/ld.so.cache")
"""What a dynamically linked interpreter needs, beside its own folder."""
_UIDS = 0x70000000
"""From here on up are the users that a superuser's sandboxes run as, one for each process."""
RUNNER = """
import json, os, sys
spec = json.loads(sys.stdin.buffer.read())
nonce, out, null = spec.pop("nonce"), os.dup(1), os.open("/dev/null", os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
names = {"__name__": "answer"}
try:
    for part in ("code", "tests"):
        exec(compile(spec[part], part, "exec"), names)
    verdict = "passed"
except BaseException as error:
    verdict = type(error).__name__
os.write(out, json.dumps([nonce, verdict]).encode())
os._exit(0)
"""


def main() -> None:
    """Isolate this process where asked to, limit it, and become the interpreter."""
    settings = json.loads(sys.argv[1])
    try:
        if settings["isolated"]:
            _isolate(settings)
        _limit(settings)
        _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0) if sys.platform == "linux" else None
    except (OSError, ValueError) as error:
        sys.stderr.write(str(error))
        sys.stderr.flush()
        os._exit(FAILED)
    # a fixed seed of hashes: sets are in the same order in every run
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(Path.cwd()), "PYTHONHASHSEED": "0"}
    # without site: the standard library alone
    os.execve(settings["python"], ["python", "-s", "-S", "-B", "-c", RUNNER], environment)


def _isolate(settings: dict[str, Any]) -> None:
    """Leave the system's files, network, processes and users behind."""
    uid, gid = os.getuid(), os.getgid()
    kinds = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    # a superuser needs no namespace of users; and in one of its own no limit of processes holds
    _call("unshare", kinds if uid == 0 else kinds | _NEWUSER)
    if uid:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        settings["processes"] += 1  # this one is in that namespace of users too
    outer = os.getpid()
    if (child := os.fork()) != 0:
        _wait_for(child, settings["wait_seconds"])
    # a signal to its group must not reach the process that waits for it
    os.setsid()
    _enter_new_root(settings, None if uid else _UIDS + outer % 0x100000)
    # last, since a change of the user clears it
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _wait_for(child: int, seconds: float) -> NoReturn:
    """End with a child, which is killed when its time is over.

    It is the first process of its namespace: with it every other one there ends, such as
    grandchildren that sleep.
    """
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _enter_new_root(settings: dict[str, Any], user: int | None) -> None:
    """Make a folder in memory the root: the interpreter read-only, and `/work` to write to."""
    root = str(Path.cwd())
    _mount(None, "/", None, _REC | _PRIVATE)
    size = settings["disk"]
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, f"size={size},nr_inodes=4096,mode=755")
    folders = dict.fromkeys([*_SYSTEM, settings["prefix"]])
    for path in folders:
        if not os.path.lexists(path) or any(path.startswith(f"{f}/") for f in ("/usr", "/nix")):
            continue
        if Path(path).is_symlink():  # such as /lib, which is /usr/lib
            Path(root + path).symlink_to(Path(path).readlink())
        else:
            _bind(path, root + path)
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _bind(device, root + device, read_only=False)
    Path(f"{root}/work").mkdir(mode=0o700)
    Path(f"{root}/tmp").symlink_to("work")
    if user is not None:
        os.chown(f"{root}/work", user, user)
    os.chroot(root)
    os.chdir("/work")
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _bind(source: str, target: str, *, read_only: bool = True) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    if Path(source).is_dir():
        Path(target).mkdir(exist_ok=True)
    else:
        Path(target).touch()
    _mount(source, target, None, _BIND | _REC)
    if read_only:
        kept = os.statvfs(source).f_flag & (_NOSUID | _NODEV | _NOEXEC)
        _mount(None, target, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | kept)


def _limit(settings: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_CPU: settings["seconds"],
        resource.RLIMIT_AS: settings["memory"],
        resource.RLIMIT_FSIZE: settings["file"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        # without a namespace all processes of the user count: then there is none beside this one
        resource.RLIMIT_NPROC: settings["processes"] if settings["isolated"] else 1,
    }
    for limit, most in limits.items():
        hard = resource.getrlimit(limit)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (least, least))


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    texts = [text and text.encode() for text in (source, target, kind, data)]
    _call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3], about=target)


def _call(name: str, *arguments: Any, about: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name} {about}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
