"""What running a model on whole texts shows: its linear layers and its positions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loramux_server.models.quantized import is_linear


@dataclass(slots=True)
class EncoderProbe:
    """What runs of a model have shown."""

    calls: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    """(name, input) of the first call of each linear layer that sees rows of one text only."""
    sides: dict[str, int] = field(default_factory=dict)
    """Name of such a layer -> the side whose tokens it sees; SOURCE (0) if it sees none."""
    other_rows: set[str] = field(default_factory=set)
    """Names of those that also or only see rows that are not tokens, such as relative distances."""
    plain: set[str] = field(default_factory=set)
    """Names of other modules with parameters that map a text token by token."""
    num_positions: dict[int, int] = field(default_factory=dict)
    """Side -> longest text, if positions are looked up in a table."""


def tokens_of(count: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Return `count` tokens without an obvious pattern, and none of the first few."""
    first = min(8, vocab_size // 2)
    return first + (torch.arange(count) * 7 + seed * 5 + 3) ** 2 % (vocab_size - first)


def probe_encoder(
    module: PreTrainedModel, runs: Sequence[tuple[Callable[[], object], Sequence[int]]]
) -> EncoderProbe:
    """Return what runs of `module` show.

    Args:
        module: The model.
        runs: Functions that run the model, each with the length of the text of each side.

    Raises:
        NotImplementedError: A linear layer sees tokens of both sides.
    """
    found = EncoderProbe()
    output = module.get_output_embeddings()
    hooks: list[RemovableHandle] = []
    others: set[str] = set()
    mixed: set[str] = set()
    lengths: list[int] = []
    called: set[str] = set()
    ever_called: set[str] = set()

    def record_linear(name: str, x: torch.Tensor) -> None:
        if x.dim() != 3 or len(x) != 1:  # such as a single vector for a text
            others.add(name)
            return
        if name not in ever_called:
            found.calls.append((name, x))
        called.add(name)
        ever_called.add(name)
        if x.shape[1] not in lengths:
            found.other_rows.add(name)
            return
        side = lengths.index(x.shape[1])
        if found.sides.setdefault(name, side) != side:
            raise NotImplementedError(f"layer {name} takes tokens of both texts")

    def check_positions(part: nn.Embedding, given: tuple[object, ...]) -> None:
        index = given[0] if given else None
        if not isinstance(index, torch.Tensor) or index.numel() not in lengths:
            return
        flat = index.flatten()
        if (flat.diff() == 1).all():
            found.num_positions[lengths.index(len(flat))] = part.num_embeddings - int(flat[0])

    def record_module(
        name: str, given: tuple[object, ...], named: dict[str, object], y: object
    ) -> None:
        x = given[0] if given else None
        is_plain = len(given) == 1 and not named and _length(x) == _length(y) in lengths
        (found.plain if is_plain else mixed).add(name)

    for name, part in module.named_modules():
        if next(part.parameters(recurse=False), None) is not None and not is_linear(part):
            hooks.append(
                part.register_forward_hook(
                    lambda _, given, named, y, name=name: record_module(name, given, named, y),
                    with_kwargs=True,
                )
            )
        if is_linear(part) and part is not output:
            hook = part.register_forward_pre_hook(
                lambda _, given, name=name: record_linear(name, given[0])
            )
            hooks.append(hook)
        elif isinstance(part, nn.Embedding):
            hooks.append(part.register_forward_pre_hook(check_positions))
    try:
        with torch.inference_mode():
            for run, run_lengths in runs:
                lengths[:] = run_lengths
                called.clear()
                run()
                # Such as experts, which see some tokens of some texts.
                others |= {name for name, _ in found.calls} - called
    finally:
        for hook in hooks:
            hook.remove()
    # A new object, so that such a layer is not grouped with others that have the same input.
    found.calls = [
        (name, x.view_as(x) if name in found.other_rows else x)
        for name, x in found.calls
        if name not in others
    ]
    found.plain -= mixed
    return found


def _length(tensor: object) -> int | None:
    """Return the number of tokens in `tensor`, [1, tokens, ...]; None if it has another shape."""
    if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and len(tensor) == 1:
        return tensor.shape[1]
    return None
