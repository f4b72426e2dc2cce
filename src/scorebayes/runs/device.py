"""Where the network computes, and on what: devices, precision, versions and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from scorebayes.errors import ConfigError

PACKAGES = (
    "scorebayes",
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "scikit-image",
    "pydicom",
    "monai",
)


def pick_device(name: str = "auto") -> torch.device:
    """The named device, or the best there is: CUDA, MPS, CPU. ConfigError if the named one is absent."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name.partition(":")[0], False):
        there = ", ".join(kind for kind, found in available.items() if found)
        raise ConfigError(f"device {name!r} is not available.", f"Available: {there}.")
    return torch.device(name)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": accelerator,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
