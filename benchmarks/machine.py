"""The machine and versions of a result."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("loramux", "torch", "transformers", "peft", "numba", "grpcio")


def describe() -> dict[str, object]:
    """Return date, commit, processor and versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(Path(__file__).parent),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = {key.strip(): value.strip() for key, _, value in (ln.partition(":") for ln in lines)}
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    flags = [flag for flag in wanted if flag in found.get("flags", "").split()]
    return f"{found.get('model name', platform.machine())} ({' '.join(flags) or 'no AVX'})"


def commit(folder: Path) -> str:
    """Return the commit of the checkout that contains `folder`."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version_of(package: str) -> str:
    """Return the version of `package`; a checkout may be in use without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
