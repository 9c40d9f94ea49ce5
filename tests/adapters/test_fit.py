"""What fits a base model, by names and shapes alone, and what is said of the rest."""

from collections.abc import Mapping
from typing import Any

import pytest

from loramux_adapters import PackageError
from loramux_adapters.contents import Bottleneck, Contents, Edit, EditKind, VirtualTokens
from loramux_adapters.fit import check_fit
from loramux_adapters.lora import LoraModule
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.token_shape import TokenShape

Q, DOWN, NORM, EMBED = "layers.0.q", "layers.0.mlp.down_proj", "layers.0.norm", "embed"
BASE = {Q: (6, 8), DOWN: (12, 6), EMBED: (50, 6)}
PARAMETERS: Mapping[str, tuple[int, ...]] = {
    f"{NORM}.weight": (6,), f"{NORM}.bias": (6,), f"{EMBED}.weight": (50, 6),
}  # fmt: skip
TOKEN = TokenShape(6, ((2, 3, 3), (2, 3, 3)))


def tensor(*shape: int) -> TensorInfo:
    return TensorInfo("t", "F32", shape, 0, 0)


def low_rank(module: str = Q, inputs: int = 6, outputs: int = 8) -> Contents:
    return Contents([LoraModule(module, 1.0, tensor(2, inputs), tensor(outputs, 2))])


def edit(module: str, kind: EditKind, *shape: int, **more: Any) -> Contents:
    return Contents(edits=[Edit(module, kind, tensor(*shape), **more)])


def bottleneck(width: int = 6, place: str = "output_adapters", layer: str = "layers.0") -> Contents:
    return Contents(bottlenecks=[Bottleneck(layer, place, {"down.weight": tensor(2, width)})])


def virtual(width: int, num_layers: int = 0, num_heads: int = 0) -> Contents:
    return Contents(virtual=VirtualTokens(tensor(4, width), None, num_layers, num_heads))


@pytest.mark.parametrize("contents", [
    Contents(),
    low_rank(),
    edit(Q, EditKind.MAGNITUDE, 8),
    edit(Q, EditKind.MAGNITUDE, 8, 1),
    edit(Q, EditKind.OUTPUT_FACTOR, 8),
    edit(Q, EditKind.INPUT_FACTOR, 6),
    edit(Q, EditKind.BIAS, 8),
    edit(NORM, EditKind.BIAS, 6),
    edit(NORM, EditKind.PARAMETER, 6, parameter="weight"),
    edit(EMBED, EditKind.SHARED_WEIGHT, 50, 6, parameter="weight"),
    edit(EMBED, EditKind.TOKENS, 2, 6, parameter="weight", tokens=(0, 49)),
    bottleneck(),
    virtual(6),
    virtual(24, 2, 2),
], ids=str)  # fmt: skip
def test_what_has_the_shapes_of_the_base_fits(contents: Contents) -> None:
    check_fit(contents, BASE, PARAMETERS, TOKEN)


@pytest.mark.parametrize(("contents", "says"), [
    (low_rank("layers.1.q"), "module layers.1.q is not an adaptable layer of the base model; "
     "similar names: layers.0.q$"),
    (low_rank("transformer.h.3.mlp.c_proj"),
     "similar names: layers.0.mlp.down_proj, layers.0.q$"),
    (low_rank("embed_tokens"), "embed_tokens is not an adaptable layer of the base model$"),
    (edit("layers.1.q", EditKind.MAGNITUDE, 8), "module layers.1.q is not an adaptable"),
    (edit(NORM, EditKind.ADDED_BIAS, 6), f"module {NORM} is not an adaptable"),
    (low_rank(inputs=5), "the adapter maps 5 to 8 features, but the base model maps 6 to 8"),
    (low_rank(outputs=6), "the adapter maps 6 to 6 features, but the base model maps 6 to 8"),
    (edit(Q, EditKind.MAGNITUDE, 6), "the magnitude has 6 values, but the layer of the base model"),
    (edit(Q, EditKind.INPUT_FACTOR, 8), "8 values, but the layer of the base model has 6 inputs"),
    (edit(Q, EditKind.BIAS, 9), "the bias has 9 values, but the layer of the base model has 8"),
    (edit("layers.1.norm", EditKind.BIAS, 6), "layers.1.norm.bias is not a parameter of the"),
    (edit(NORM, EditKind.BIAS, 5), r"the bias has shape \[5\], but that of the base model has"),
    (edit(NORM, EditKind.PARAMETER, 6, parameter="scale"), f"{NORM}.scale is not a parameter"),
    (edit(NORM, EditKind.PARAMETER, 6, 1, parameter="weight"),
     r"the parameter has shape \[6, 1\], but that of the base model has \[6\]"),
    (edit(EMBED, EditKind.SHARED_WEIGHT, 49, 6, parameter="weight"),
     r"has shape \[49, 6\], but that of the base model has \[50, 6\]"),
    (edit(EMBED, EditKind.TOKENS, 2, 6, parameter="weight", tokens=(3, 50)),
     "it has a row for token 50, but the base model has 50 tokens"),
    (edit(EMBED, EditKind.TOKENS, 1, 6, parameter="weight", tokens=(3, 4)),
     r"has shape \[1, 6\], but that of the base model has \[2, 6\]"),
    (edit(EMBED, EditKind.TOKENS, 2, 5, parameter="weight", tokens=(3, 4)),
     r"has shape \[2, 5\], but that of the base model has \[2, 6\]"),
    (bottleneck(width=12), "it has width 12, but the base model has 6"),
    (bottleneck(layer="layers.1"), "the base model has no layer layers.1 with the parts that"),
    (bottleneck(place="attention_adapters"), "the base model has no layer layers.0"),
    (virtual(5), "an embedding has 5 values, but one of the base model has 6"),
    (virtual(12, 1, 2),
     "of 2 heads of width 3, but the base model has 2 layers of 2 heads of widths 3 and 3"),
    (virtual(24, 2, 3), "for 2 layers of 3 heads of width 2, but the base model has 2 layers"),
    (virtual(16, 2, 2), "for 2 layers of 2 heads of width 2, but the base model has 2 layers"),
])  # fmt: skip
def test_what_has_not_is_refused_with_both_shapes(contents: Contents, says: str) -> None:
    with pytest.raises(PackageError, match=says) as caught:
        check_fit(contents, BASE, PARAMETERS, TOKEN)
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"


def test_what_the_base_does_not_state_fits_nothing() -> None:
    for contents in (virtual(6), virtual(24, 2, 2)):
        with pytest.raises(PackageError, match="is not known") as caught:
            check_fit(contents, BASE, PARAMETERS)
        assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
    with pytest.raises(PackageError, match="is not a parameter"):
        check_fit(edit(NORM, EditKind.BIAS, 6), BASE)


def test_layers_of_several_kinds_are_all_named() -> None:
    token = TokenShape(6, ((2, 3, 3), (1, 4, 5), (2, 3, 3)))
    with pytest.raises(
        PackageError, match="1 heads of widths 4 and 5 or 2 heads of widths 3 and 3"
    ):
        check_fit(virtual(24, 2, 2), BASE, PARAMETERS, token)
