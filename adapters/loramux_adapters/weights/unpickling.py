"""Converts a torch pickle to safetensors: `python -m … < adapter_model.bin > adapter.safetensors`.

It runs as a separate process, since a pickle may be malicious. torch's restricted unpickler creates
only tensors. In addition, Python's audit hook denies opening, importing and starting anything once
the process is ready, which native code could evade, and CPU time and memory are limited.
"""

import io
import os
import re
import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save

CPU_SECONDS = 600
_MEMORY_TIMES = 6
"""Limit of the address space that reading may add, as a multiple of the file's size."""
_MEMORY_MORE = 1 << 30
_FORBIDDEN = (
    "open", "import", "os.", "socket.", "subprocess.", "shutil.", "ctypes.dlopen", "ctypes.dlsym",
    "pickle.", "marshal.", "mmap.", "pty.", "signal.", "fcntl.", "tempfile.", "glob.", "urllib.",
)  # fmt: skip
"""Prefixes of audit events that are denied."""


def main() -> int:
    """Convert stdin to stdout; return 0, or 1 with a line on stderr that says what is wrong."""
    source, target = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(2, 1)  # keep prints out of the output file
    _warm_up()
    _restrict(os.fstat(0).st_size)
    try:
        raw = memoryview(_tensors(source.read()))
    except Exception as error:  # a malicious file may raise anything in torch
        print(_reason(error), file=sys.stderr)
        return 1
    while raw:
        raw = raw[os.write(target, raw) :]
    return 0


def _tensors(raw: bytes) -> bytes:
    """Return the tensors of a pickle as a safetensors file."""
    found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise TypeError(f"it contains a {type(found).__name__}, not a dict of tensors")
    for name, tensor in found.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)):
            raise TypeError(f"{name!r} is a {type(tensor).__name__}, not a tensor")
    # Cloned, because safetensors does not allow tensors that share memory.
    return save({name: tensor.detach().clone().contiguous() for name, tensor in found.items()})


def _warm_up() -> None:
    """Trigger all imports that reading and writing need, for both of torch's file formats."""
    tensors = {str(dtype): torch.ones(2, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    for is_zip in (True, False):
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=is_zip)
        _tensors(file.getvalue())


def _restrict(num_bytes: int) -> None:
    """Drop rights that reading a file of `num_bytes` does not need."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[0])
        most = pages * resource.getpagesize() + _MEMORY_TIMES * num_bytes + _MEMORY_MORE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def refuse(event: str, arguments: object) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"it attempts an operation that tensors do not need: {event}")

    sys.addaudithook(refuse)


def _reason(error: Exception) -> str:
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named:
        return f"it references {named[1]}, which is not a tensor"
    first = ascii(text.strip().partition("\n")[0])[1:-1]
    return first[:200] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
