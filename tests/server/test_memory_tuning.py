"""What a process gives back of the memory that it frees, and what it keeps."""

import subprocess
import sys

import pytest

_PIECES, _PIECE = 32, 1 << 20

PROGRAM = f"""
import ctypes, pathlib, resource
from loramux_server.memory_tuning import pin_mmap_threshold, trim_and_retain

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def use():
    pieces = []
    for _ in range({_PIECES}):
        pieces.append(library.malloc({_PIECE}))
        ctypes.memset(pieces[-1], 1, {_PIECE})
        library.malloc(1 << 10)  # stays behind each
    return pieces

def free(pieces):
    for piece in pieces:
        library.free(piece)

pin_mmap_threshold()
before = resident()
for _ in range(2):
    free(use())
loaded = resident() - before
trim_and_retain()
free(use())
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
free(use())
print(loaded, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_loading_frees_goes_back_and_what_steps_free_stays() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    loaded, faults = map(int, done.stdout.split())
    assert loaded < _PIECES * _PIECE / 4
    assert faults < _PIECES * _PIECE / 4096 / 4
