"""``rlkd doctor``: what this machine has, what would break, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlkd.cluster.hardware import usable_cpus

_IMPORTS = ("torch", "transformers", "vllm", "deepspeed", "ray", "accelerate", "trl", "peft", "datasets")
_STRANGERS = ("torchvision", "torchaudio", "torchcodec")
_FREE_SHM = 2 * 2**30
_FREE_DISK = 10 * 2**30


@dataclass(frozen=True)
class Finding:
    """One fact. ``broken`` ones stop a run."""

    state: Literal["ok", "note", "broken"]
    subject: str
    text: str

    @property
    def broken(self) -> bool:
        return self.state == "broken"

    def line(self) -> str:
        return f"{self.state:7}{self.subject:14}{self.text}"


def examine() -> Iterator[Finding]:
    """All checks, in the order in which one would mend things, each as soon as it is known: some take seconds."""
    yield _python()
    yield from _versions()
    yield from _imports()
    yield from _strangers()
    for check in (_cpus, _memory, _shm, _disk, _compiler, _devices, _ray):
        yield check()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    inside = sys.prefix != sys.base_prefix
    return Finding("ok" if inside else "note", "python", f"{version}{'' if inside else '; not a virtual environment'}")


def _versions() -> list[Finding]:
    """Installed against pinned, from rlkd's own metadata: the tested set moves as one block."""
    findings = []
    for requirement in importlib.metadata.requires("rlkd") or []:
        found = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([0-9.]+?)(\.\*)?(?:;|$)", requirement.replace(" ", ""))
        if not found or re.search(r"extra=='(dev|embed)'", requirement.replace(" ", "").replace('"', "'")):
            continue
        name, wanted, prefix = found.group(1), found.group(2), found.group(3)
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if not name.startswith("vllm"):  # one of the two builds is there; imports say if neither is
                findings.append(Finding("broken", name, f"missing; {wanted} is wanted: pip install -e '.[cpu]'"))
            continue
        same = have == wanted or (prefix is not None and have.startswith(wanted + "."))
        text = have if same else f"{have}, tested with {wanted}{prefix or ''}; pip install -e '.[cpu]' restores it"
        findings.append(Finding("ok" if same else "note", name, text))
    return findings


def _imports() -> list[Finding]:
    """Each in a process of its own: a broken library may take the interpreter with it."""
    findings = []
    for name in _IMPORTS:
        error = _import_error(name)
        if error:
            findings.append(Finding("broken", name, f"does not import: {error}"))
    return findings or [Finding("ok", "imports", ", ".join(_IMPORTS))]


def _import_error(*names: str) -> str:
    code = f"import {', '.join(names)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit {done.returncode}"


def _strangers() -> list[Finding]:
    """Packages of another build than torch, which transformers imports when it finds them."""
    findings = []
    for name in _STRANGERS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        error = _import_error("torch", name)
        if error:
            text = f"breaks `import transformers` ({error}); rlkd needs none of it: pip uninstall {name}"
            findings.append(Finding("broken", name, text))
    return findings


def _cpus() -> Finding:
    cpus, whole = usable_cpus(), os.cpu_count() or 1
    limited = "" if cpus == whole else f" of {whole} (this process may use no more)"
    return Finding("ok" if cpus > 1 else "note", "cpu", f"{cpus} core(s){limited}")


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    enough = free >= 6 * 2**30
    text = f"{free / 2**30:.1f} GiB available"
    return Finding("ok" if enough else "note", "memory", text if enough else f"{text}; the example wants about 6 GiB")


def _shm() -> Finding:
    """Ray's object store and the engines' queues live there; containers get 64 MiB unless told otherwise."""
    if not os.path.isdir("/dev/shm"):  # noqa: PTH112
        return Finding("note", "/dev/shm", "not there; Ray falls back to files, which is slow")
    free = shutil.disk_usage("/dev/shm").free
    text = f"{free / 2**30:.1f} GiB free"
    if free >= _FREE_SHM:
        return Finding("ok", "/dev/shm", text)
    return Finding("note", "/dev/shm", f"{text}; Ray falls back to files. In a container: --shm-size 8g")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    text = f"{free / 2**30:.1f} GiB free in this folder"
    return Finding("ok" if free >= _FREE_DISK else "note", "disk", text)


def _compiler() -> Finding:
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if found:
        return Finding("ok", "compiler", found)
    return Finding(
        "note", "compiler", "no C++ compiler: set engine.enforce_eager: true, and leave learner.offload_optimizer off"
    )


_BFLOAT16 = {
    "native": "this CPU has instructions for bfloat16; learner.precision auto takes it",
    "emulated": "this CPU computes bfloat16 in float32; learner.precision auto takes float32",
    "none": "bfloat16 is 10 to 50 times slower than float32 on this CPU; learner.precision auto takes float32",
}


def _devices() -> Finding:
    """GPUs, or what the CPU makes of bfloat16."""
    code = (
        "import torch; from rlkd.launch import cpu_bfloat16; print(cpu_bfloat16());"
        "print(*(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())), sep='; ')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    bfloat16, _, names = done.stdout.strip().partition("\n")
    if names:
        return Finding("ok", "gpu", names)
    if shutil.which("nvidia-smi"):
        return Finding(
            "broken", "gpu", "nvidia-smi is here but torch sees no GPU: the CPU build? pip install -e '.[gpu]'"
        )
    slow = bfloat16 == "none"
    told = _BFLOAT16.get(bfloat16, "torch does not say what this CPU makes of bfloat16")
    return Finding("note" if slow else "ok", "gpu", f"none; everything runs on the CPU; {told}")


def _ray() -> Finding:
    """Start what a run starts, with the same settings, and stop it."""
    code = (
        "import time, ray; begun = time.time();"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR');"
        "ray.get(ray.remote(num_cpus=0)(lambda: 1).remote(), timeout=90);"
        "print(f'{time.time() - begun:.1f}'); ray.shutdown()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=180, env=environment
        )
    except subprocess.TimeoutExpired:
        return Finding("broken", "ray start", "no worker within 180 s; see /tmp/ray/session_latest/logs")
    if done.returncode:
        return Finding("broken", "ray start", (done.stderr.strip().splitlines() or ["no message"])[-1])
    return Finding("ok", "ray start", f"a worker answered after {done.stdout.strip()} s")
