"""Runs one untrusted program in fresh Linux namespaces. Started by path with ``python -I -S``; imports only the stdlib.

    launcher -> unshare(network, pids, mounts, ipc, uts [, user]) -> init (pid 1) -> program (own session, own uid)

The program sees a read-only Python, an empty 16 MB work folder, no network, no other process and no environment.
When it ends, init ends, and the kernel kills whatever it had started. Config arrives on stdin as JSON; the last line of
stderr says how it ended (``{"exit": code}`` or ``{"signal": number}``): init writes it, out of the program's reach.
"""

# pathlib would double the start time of every program
# ruff: noqa: PTH101, PTH102, PTH103, PTH110, PTH112, PTH114, PTH115, PTH120, PTH123, PTH211
import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

CLONE = {"mnt": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE = 1, 38, 4
WORK = "/work"
REPORT_FD = 200
# Without the site module, which reads site-packages, exit and quit would be missing.
BOOT = (
    "import builtins, sys\n"
    "builtins.exit = builtins.quit = sys.exit\n"
    "del builtins\n"
    f"__file__, sys.argv = '{WORK}/main.py', ['{WORK}/main.py']\n"
    "exec(compile(open(__file__, 'rb').read(), __file__, 'exec'))"
)

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def isolate() -> None:
    """Enter the namespaces. Root needs no user namespace; anybody else becomes uid 1000 in one."""
    root = os.geteuid() == 0
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE["mnt"] | CLONE["uts"] | CLONE["ipc"] | CLONE["pid"] | CLONE["net"] | (0 if root else CLONE["user"])
    check(libc.unshare(flags), "unshare")
    if not root:
        for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as stream:
                stream.write(text)
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "private mounts")


def build_root(config: dict[str, Any]) -> None:
    """A root of our own on a small tmpfs: system libraries and this Python bound read-only, an empty work folder."""
    top = config["mountpoint"]
    check(
        libc.mount(b"tmpfs", top.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=16m,nr_inodes=2000,mode=755"), "tmpfs"
    )
    for path in config["visible"]:
        if os.path.islink(path):
            os.makedirs(os.path.dirname(top + path), exist_ok=True)
            os.symlink(os.readlink(path), top + path)
        elif os.path.isdir(path):
            os.makedirs(top + path, exist_ok=True)
            bind(path, top + path)
        elif os.path.exists(path):
            os.makedirs(os.path.dirname(top + path), exist_ok=True)
            os.close(os.open(top + path, os.O_CREAT | os.O_WRONLY))
            bind(path, top + path, device=path.startswith("/dev/"))
    os.mkdir(top + WORK)
    os.mkdir(top + "/tmp")
    os.chmod(top + WORK, 0o777)
    os.chmod(top + "/tmp", 0o1777)
    with open(top + WORK + "/main.py", "w", encoding="utf-8", errors="surrogatepass") as stream:
        stream.write(config["program"])
    os.chroot(top)
    os.chdir(WORK)


def bind(source: str, target: str, device: bool = False) -> None:
    check(libc.mount(source.encode(), target.encode(), None, MS_BIND | MS_REC, None), f"bind {source}")
    flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | (0 if device else MS_NODEV)
    check(libc.mount(None, target.encode(), None, flags, None), f"read-only {source}")


def limit(config: dict[str, Any]) -> None:
    memory = config["memory_limit_mb"] * 2**20
    seconds = int(config["time_limit_s"]) + 1
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NPROC, config["processes"]),
        (resource.RLIMIT_FSIZE, 8 * 2**20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def become_nobody(config: dict[str, Any]) -> None:
    """Root turns into a uid that owns nothing and that no other sandbox has, so that its process limit is its own."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def run_program(config: dict[str, Any], stdin: int, trouble: int) -> None:
    os.setsid()
    os.dup2(stdin, 0)
    os.dup2(trouble, 3, inheritable=False)
    os.closerange(4, 256)
    become_nobody(config)
    limit(config)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": WORK,
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    os.execve(config["python"], [config["python"], "-I", "-S", "-B", "-X", "utf8", "-c", BOOT], environment)


def init(config: dict[str, Any]) -> None:
    """Pid 1: starts the program, waits for it alone, and reports. Ends, and with it everything."""
    os.dup2(2, REPORT_FD)
    build_root(config)
    os.umask(0o022)
    stdin = os.memfd_create("stdin")
    os.write(stdin, config["stdin"].encode("utf-8", "surrogatepass"))
    os.lseek(stdin, 0, os.SEEK_SET)
    heard, trouble = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            run_program(config, stdin, trouble)
        except BaseException as error:
            os.write(3, f"{type(error).__name__}: {error}".encode())
        os._exit(125)
    os.close(trouble)
    failure = os.read(heard, 2000).decode()  # empty once the program runs: exec closed the other end
    while True:
        pid, status = os.wait()
        if pid == child:
            break
    ended: dict[str, Any] = (
        {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"exit": os.WEXITSTATUS(status)}
    )
    if failure:
        ended = {"failed": failure}
    os.write(REPORT_FD, f"\n{json.dumps({'key': config['key'], **ended})}\n".encode())


def main() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    config = json.loads(sys.stdin.buffer.read())
    if os.getppid() != config["parent"]:
        os._exit(1)
    try:
        isolate()
        child = os.fork()
        if child == 0:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            init(config)
            os._exit(0)
        # On SIGTERM kill init and go on waiting: init is gone only when all that it held is gone.
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
        os.waitpid(child, 0)
    except BaseException as error:
        os.write(2, f"\n{json.dumps({'key': config['key'], 'failed': f'{type(error).__name__}: {error}'})}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
