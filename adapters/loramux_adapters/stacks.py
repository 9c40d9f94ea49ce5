"""Stacks: the factors of many experts in one tensor, which keeps the header of a package small.

Where experts are modules, PEFT saves A and B for each of them: 36,864 tensors for 48 layers of 128
experts. A stack has the factors for one matrix in one layer that share dtype and shape, in the
order of the experts: [E, R, K] for A and [E, N, R] for B. In its name the expert's number is
replaced by the list of all numbers, as in `experts.0-5_7.up_proj.lora_A.weight` for the first six
and the eighth. Its data are those of its parts end to end, so the header gives the position of each
part.

Legend: E experts, R rank, K input width, N output width.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.tensorfile import FOLDER, MAX_NAME_BYTES, ReadTensor, TensorInfo

MAX_PARTS = FOLDER.num_tensors
"""Limit for all stacks of a package together: the header of a small file can name billions."""
_BEFORE, _AFTER = r"(?P<before>.+\.experts\.)", r"(?P<after>\.[^.]+\.lora_[AB]\.weight)"
_PART = re.compile(rf"{_BEFORE}(?P<number>0|[1-9]\d{{0,8}}){_AFTER}")
_STACK = re.compile(rf"{_BEFORE}(?P<numbers>\d+(?:[_-]\d+)+){_AFTER}")
_RUN = re.compile(r"(0|[1-9]\d{0,8})(?:-([1-9]\d{0,8}))?")


@dataclass(frozen=True, slots=True)
class Stored:
    """Tensors as a file stores them, some of them stacked."""

    tensors: dict[str, TensorInfo]
    parts: Mapping[str, Sequence[TensorInfo]] = field(default_factory=dict)
    """Name of each stack -> its parts, in order."""

    def reader(self, read: ReadTensor) -> ReadTensor:
        """Return a reader of these tensors, given one that reads unstacked tensors and parts."""

        def read_stored(tensor: TensorInfo) -> Iterator[bytes]:
            for part in self.parts.get(tensor.name, (tensor,)):
                yield from read(part)

        return read_stored


def stacked(tensors: Mapping[str, TensorInfo]) -> Stored:
    """Return `tensors` with the factors of experts stacked; offsets are not set."""
    found: dict[str, TensorInfo] = {}
    groups: dict[tuple[str, str, str, tuple[int, ...]], dict[int, TensorInfo]] = {}
    for name, tensor in tensors.items():
        match = _PART.fullmatch(name) if len(tensor.shape) == 2 else None
        if match:
            key = (match["before"], match["after"], tensor.dtype, tensor.shape)
            groups.setdefault(key, {})[int(match["number"])] = tensor
        else:
            found[name] = tensor
    parts: dict[str, Sequence[TensorInfo]] = {}
    for (before, after, dtype, shape), alike in groups.items():
        for text, numbers in _lists(sorted(alike), MAX_NAME_BYTES - len(before) - len(after)):
            name = f"{before}{text}{after}"
            if len(numbers) == 1:
                found[name] = alike[numbers[0]]
                continue
            parts[name] = [alike[number] for number in numbers]
            num_bytes = sum(part.num_bytes for part in parts[name])
            found[name] = TensorInfo(name, dtype, (len(numbers), *shape), 0, num_bytes)
    return Stored(found, parts)


def unstacked(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return `tensors` with each stack replaced by its parts, under the names that PEFT gave them.

    Raises:
        PackageError: A stack does not match its name, or a tensor occurs twice.
    """
    found: dict[str, TensorInfo] = {}
    num_parts = 0
    for name, tensor in tensors.items():
        match = _STACK.fullmatch(name)
        runs = _runs(name, match["numbers"]) if match else []
        num_parts += sum(map(len, runs))
        if num_parts > MAX_PARTS:
            raise PackageError(
                f"tensor {name}: the stacks have {num_parts} parts up to here; the limit is "
                f"{MAX_PARTS}"
            )
        for part in _parts(tensor, match, runs) if match else (tensor,):
            if part.name in found:
                raise PackageError(f"tensor {part.name} occurs twice, alone or in stacks")
            found[part.name] = part
    return found


def _parts(tensor: TensorInfo, match: re.Match[str], runs: Sequence[range]) -> Iterator[TensorInfo]:
    count = sum(map(len, runs))
    if len(tensor.shape) != 3:
        raise PackageError(
            f"tensor {tensor.name}: shape {shown(tensor.shape)} is not 3-D, as a stack requires"
        )
    if tensor.shape[0] != count:
        raise PackageError(
            f"tensor {tensor.name}: shape {shown(tensor.shape)} has {tensor.shape[0]} experts, but "
            f"the name has {count}"
        )
    before, after = match["before"], match["after"]
    num_bytes = tensor.num_bytes // count
    for i, number in enumerate(itertools.chain(*runs)):
        yield TensorInfo(
            f"{before}{number}{after}",
            tensor.dtype,
            tensor.shape[1:],
            tensor.offset + i * num_bytes,
            num_bytes,
        )


def _runs(name: str, numbers: str) -> list[range]:
    """Return the ranges of experts in `numbers`, a part of the tensor name `name`."""
    runs: list[range] = []
    for text in numbers.split("_"):
        match = _RUN.fullmatch(text)
        first = int(match[1]) if match else -1
        last = int(match[2]) if match and match[2] else first
        is_run = match is not None and (last > first or not match[2])
        if not is_run or first <= (runs[-1][-1] if runs else -1):
            raise PackageError(
                f"tensor {name}: {numbers} are not experts in ascending order, such as 0-5_7"
            )
        runs.append(range(first, last + 1))
    return runs


def _lists(numbers: Sequence[int], max_length: int) -> Iterator[tuple[str, list[int]]]:
    """Split ascending `numbers` so that each piece's text has at most `max_length`; yield both."""
    text, piece = "", list[int]()
    for run in _split(numbers):
        more = f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}"
        if piece and len(text) + 1 + len(more) > max_length:
            yield text, piece
            text, piece = "", []
        text = f"{text}_{more}" if piece else more
        piece += run
    if piece:
        yield text, piece


def _split(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the runs of consecutive numbers in ascending `numbers`."""
    begin = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield numbers[begin:end]
            begin = end
