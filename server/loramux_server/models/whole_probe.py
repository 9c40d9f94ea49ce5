"""What a run of a model shows that reads whole texts: its linear layers, and its positions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loramux_server.models.quantized import is_linear


@dataclass(slots=True)
class WholeProbed:
    """What a run has shown."""

    calls: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    """(name, input) for each linear layer that sees all tokens of a text, in its first call."""
    sides: dict[str, int] = field(default_factory=dict)
    """Name of such a layer -> number of the text whose tokens it sees."""
    plain: set[str] = field(default_factory=set)
    """Names of other modules with parameters that make something of each token of a text."""
    num_positions: dict[int, int] = field(default_factory=dict)
    """Number of a text -> how many tokens it may have, where positions are looked up in a table."""


def tokens_of(count: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Return so many tokens that do not follow each other, and are none of the first few."""
    first = min(8, vocab_size // 2)
    return first + (torch.arange(count) * 7 + seed * 5 + 3) ** 2 % (vocab_size - first)


def probe_whole(
    module: PreTrainedModel, runs: Sequence[tuple[Callable[[], object], Sequence[int]]]
) -> WholeProbed:
    """Return what runs of `module` show.

    Args:
        module: The model.
        runs: Each runs it on texts, one for each side, of which it is told how long they are.

    Raises:
        NotImplementedError: A linear layer sees now these, now those tokens.
    """
    found = WholeProbed()
    output = module.get_output_embeddings()
    hooks: list[RemovableHandle] = []
    others: set[str] = set()
    mixed: set[str] = set()
    lengths: list[int] = []
    seen: set[str] = set()

    def saw(name: str, x: torch.Tensor) -> None:
        length = x.shape[1] if x.dim() == 3 and len(x) == 1 else 0
        if length not in lengths:  # such as one vector of a text
            others.add(name)
            return
        seen.add(name)
        if name not in found.sides:
            found.calls.append((name, x))
        if found.sides.setdefault(name, lengths.index(length)) != lengths.index(length):
            raise NotImplementedError(f"layer {name} sees tokens of both texts")

    def looked(part: nn.Embedding, given: tuple[object, ...]) -> None:
        index = given[0] if given else None
        if not isinstance(index, torch.Tensor) or index.numel() not in lengths:
            return
        flat = index.flatten()
        if (flat.diff() == 1).all():
            found.num_positions[lengths.index(len(flat))] = part.num_embeddings - int(flat[0])

    def made(name: str, given: tuple[object, ...], named: dict[str, object], y: object) -> None:
        x = given[0] if given else None
        is_plain = len(given) == 1 and not named and _length(x) == _length(y) in lengths
        (found.plain if is_plain else mixed).add(name)

    for name, part in module.named_modules():
        if next(part.parameters(recurse=False), None) is not None and not is_linear(part):
            hooks.append(
                part.register_forward_hook(
                    lambda _, given, named, y, name=name: made(name, given, named, y),
                    with_kwargs=True,
                )
            )
        if is_linear(part) and part is not output:
            hook = part.register_forward_pre_hook(lambda _, given, name=name: saw(name, given[0]))
            hooks.append(hook)
        elif isinstance(part, nn.Embedding):
            hooks.append(part.register_forward_pre_hook(looked))
    try:
        with torch.inference_mode():
            for run, told in runs:
                lengths[:] = told
                seen.clear()
                run()
                # Such as experts, which see some tokens of some texts.
                others |= {name for name, _ in found.calls} - seen
    finally:
        for hook in hooks:
            hook.remove()
    found.calls = [call for call in found.calls if call[0] not in others]
    found.plain -= mixed
    return found


def _length(tensor: object) -> int | None:
    """Return the tokens of a text of which `tensor` tells, behind the only one of its sequences."""
    if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and len(tensor) == 1:
        return tensor.shape[1]
    return None
