"""Where something was measured: versions, processor, threads, and the commit where there is one."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ...core.devices import processor
from ...core.version import VERSION

KINDS = ("sse4_2", "avx", "fma", "amx", "neon", "asimd", "sve", "bf16", "f16")  # parts of names of CPU flags
_ROOT = Path(__file__).resolve().parents[4]  # of the repository, where the package is not installed


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Plain values that say where something is measured.

    Args:
        device: what it is measured on.
    """
    model, known = processor()
    flags = sorted(flag for flag in known if any(kind in flag for kind in KINDS))
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
