"""Adapters with pickled torch tensors, as PEFT saved them up to version 0.6."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from loramux_adapters.adapters_library import PICKLE_FILE as LIBRARY_PICKLE_FILE
from loramux_adapters.adapters_library import TENSOR_FILE as LIBRARY_TENSOR_FILE
from loramux_adapters.errors import PackageError
from loramux_adapters.extras import install_command
from loramux_adapters.files import open_regular
from loramux_adapters.peft_folder import PICKLE_FILE, TENSOR_FILE
from loramux_adapters.prediction_head import PICKLE_FILE as HEAD_PICKLE_FILE
from loramux_adapters.prediction_head import TENSOR_FILE as HEAD_TENSOR_FILE
from loramux_adapters.sources import FILES

PICKLES = {
    PICKLE_FILE: TENSOR_FILE,
    LIBRARY_PICKLE_FILE: LIBRARY_TENSOR_FILE,
    HEAD_PICKLE_FILE: HEAD_TENSOR_FILE,
}
"""Name of a pickle -> name of the safetensors file that replaces it."""
_READER = "loramux_adapters.weights.unpickling"
_KEPT = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR")
"""Environment variables that the reading process gets."""


@contextmanager
def without_pickles(source: Path) -> Iterator[Path]:
    """Yield a temporary folder with the adapter of `source`, its pickles converted to safetensors.

    A separate process reads the pickles; see `unpickling`.

    Raises:
        PackageError: There is no pickle, it has something other than tensors, or torch is not
            installed.
        OSError: A file cannot be read.
    """
    pickles = [name for name in PICKLES if (source / name).is_file()]
    if not pickles:
        raise PackageError(f"{source} has none of {', '.join(PICKLES)}")
    if not (find_spec("torch") and find_spec("safetensors")):
        raise PackageError(f"reading {pickles[0]} needs torch: {install_command('train')}")
    with tempfile.TemporaryDirectory(prefix="loramux-") as place:
        folder = Path(place)
        for name in FILES:
            if name not in PICKLES.values() and (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        for name in pickles:
            _rewrite(source / name, folder / PICKLES[name])
        yield folder


def _rewrite(source: Path, target: Path) -> None:
    """Convert the pickle `source` to the safetensors file `target`."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with open_regular(source) as file, target.open("xb") as output:
        done = subprocess.run(
            [sys.executable, "-m", _READER],
            stdin=file, stdout=output, stderr=subprocess.PIPE, env=environment, check=False,
        )  # fmt: skip
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"its reader ended with exit code {done.returncode}"
        raise PackageError(f"{source.name} is rejected: {why}", "INVALID_ADAPTER_CONFIG")
