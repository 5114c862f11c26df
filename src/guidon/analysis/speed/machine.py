"""Where something was measured: versions, processor, threads, and the commit where there is one."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ...core.version import VERSION

KINDS = ("sse4_2", "avx", "fma", "amx", "neon", "asimd", "sve", "bf16", "f16")  # parts of names of CPU flags
_ROOT = Path(__file__).resolve().parents[4]  # of the repository, where the package is not installed


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Plain values that say where something is measured.

    Args:
        device: what it is measured on.
    """
    model, flags = _processor()
    place = torch.device(device)
    found: dict[str, Any] = {
        "guidon": VERSION,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": flags,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": str(place),
    }
    if place.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(place)
    return found


def machine_line(machine: dict[str, Any]) -> str:
    """A machine in one line, for people."""
    flags = [flag for flag in machine["flags"] if "amx" in flag or "bf16" in flag] or ["no bf16"]
    where = machine.get("gpu") or machine["processor"] or machine["system"]
    load = "" if machine["load"] is None else f", load {machine['load']:.1f}"
    return (
        f"{where}, {machine['threads']} threads of {machine['cores']} cores ({', '.join(flags)}){load}, "
        f"torch {machine['torch']}, guidon {machine['guidon']}"
        + (f" at {machine['commit']}" if machine["commit"] else "")
    )


def _processor() -> tuple[str, list[str]]:
    """The processor's name, and those of its flags that decide the speed of arithmetic."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return platform.processor(), []
    lines = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    flags = (lines.get("flags") or lines.get("Features") or "").split()
    kept = sorted(flag for flag in set(flags) if any(kind in flag for kind in KINDS))
    return lines.get("model name", platform.processor()), kept


def _commit() -> str | None:
    """The commit of the repository that the package lies in; a plus sign says that files differ from it."""
    if not (_ROOT / ".git").exists() or not (_ROOT / "src" / "guidon").is_dir():
        return None
    try:
        git = ["git", "-C", str(_ROOT)]
        short = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # git is not there, or hangs: the commit is not known
        return None
    if short.returncode:
        return None
    return short.stdout.strip() + ("+" if changed.stdout.strip() else "")
