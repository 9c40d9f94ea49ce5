"""The saved tensors of a quantized base as a state dict with the unquantized names."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from loramux_server.models.dequantize import scaled
from loramux_server.models.dequantize.awq import AwqWeight
from loramux_server.models.dequantize.gptq import FORMATS, GptqWeight
from loramux_server.models.dequantize.layout import Dequantized, Layout, Slice, Slices
from loramux_server.models.dequantize.method import QUANTIZED, SavedMethod, gptq_format
from loramux_server.models.dequantize.packed import PackedWeight

_OF_ACTIVATIONS = (
    ".input_scale", ".input_scale_ub", ".input_zero_point", ".activation_scale", ".output_scale",
    ".q_scale", ".k_scale", ".v_scale",
)  # fmt: skip
"""Name suffixes of scales of activations and caches, which are not quantized here."""
State = dict[str, Slice | Dequantized]


@dataclass(frozen=True, slots=True)
class _Found:
    """A quantized weight among the saved tensors."""

    name: str
    """Its unquantized name."""
    parts: Mapping[str, str]
    """Name of a tensor within its layout -> its saved name."""
    make: Callable[[str, Slices], Layout]


def dequantized_state(
    saved: Slices, method: SavedMethod, dtype: torch.dtype, device: torch.device
) -> State:
    """Return the state dict of `saved` as if it had never been quantized.

    Args:
        saved: The tensors in the files of the base.
        method: How they were quantized.
        dtype: The dtype to dequantize to.
        device: Where they are dequantized when they are read.

    Raises:
        ValueError: A part of a quantized weight is missing, or its shapes do not fit.
    """
    state: State = {}
    used: set[str] = set()
    for found in _found(saved, method):
        parts = {role: saved[name] for role, name in found.parts.items()}
        layout = found.make(found.name.removesuffix(".weight"), parts)
        state[found.name] = Dequantized(layout, parts, dtype, device)
        used.update(found.parts.values())
    for name in sorted(saved.keys() - used):
        if name.endswith(QUANTIZED):
            raise ValueError(
                f"it has {name}, which is not part of {method.title}, the method in its "
                "quantization_config"
            )
        if not name.endswith(_OF_ACTIVATIONS):
            state[name] = saved[name]
    return state


def _found(saved: Slices, method: SavedMethod) -> Iterator[_Found]:
    """Yield the quantized weights."""
    size = method.group_size
    if method.name == "gptq":
        zeros_minus_one = gptq_format(method.config) == FORMATS[0]
        make = partial(GptqWeight, config_group_size=size, zeros_minus_one=zeros_minus_one)
        yield from _packed(saved, "qweight", ("qzeros", "scales"), ("g_idx",), make)
        return
    if method.name == "awq":
        yield from _packed(
            saved, "qweight", ("qzeros", "scales"), (), partial(AwqWeight, config_group_size=size)
        )
        return
    formats: tuple[str, ...] = scaled.FP8
    if method.name == "compressed-tensors":
        formats += scaled.INT8
        found = _packed(
            saved, "weight_packed", ("weight_scale", "weight_shape"),
            ("weight_zero_point", "weight_g_idx"), partial(PackedWeight, config_group_size=size),
        )  # fmt: skip
        yield from found
    yield from _scaled(saved, formats, method.block)


def _packed(
    saved: Slices,
    main: str,
    others: tuple[str, ...],
    optional: tuple[str, ...],
    make: Callable[[str, Slices], Layout],
) -> Iterator[_Found]:
    """Yield weights saved as several tensors with names of their own, one of which is `main`.

    Raises:
        ValueError: One of `others` is missing.
    """
    for name in saved:
        layer, _, last = name.rpartition(".")
        if last != main:
            continue
        there = [each for each in (main, *others, *optional) if f"{layer}.{each}" in saved]
        for each in others:
            if each not in there:
                raise ValueError(f"it lacks the tensor {layer}.{each}, which {name} needs")
        parts = {each.removeprefix("weight_"): f"{layer}.{each}" for each in there}
        yield _Found(f"{layer}.weight", parts, make)


def _scaled(
    saved: Slices, formats: tuple[str, ...], block: tuple[int, int] | None
) -> Iterator[_Found]:
    """Yield weights in one of `formats`, whose scales have the weight's name and a suffix.

    Raises:
        ValueError: Scales are missing.
    """
    for name, weight in saved.items():
        if weight.get_dtype() not in formats or name.endswith(("_zero_point", "_scale")):
            continue
        scale = next((s for s in (f"{name}_scale_inv", f"{name}_scale") if s in saved), None)
        if scale is None:
            raise ValueError(
                f"it lacks the tensor {name}_scale_inv or {name}_scale, which {name}, saved as "
                f"{weight.get_dtype()}, needs"
            )
        parts = {"weight": name, "scale": scale}
        if f"{name}_zero_point" in saved:
            parts["zero"] = f"{name}_zero_point"
        yield _Found(name, parts, partial(scaled.ScaledWeight, block=block))
