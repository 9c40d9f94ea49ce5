"""Loads a package's edits: everything that it changes besides rank rows.

Legend: V vocabulary size, E tokens with trained rows, R rank, K width of an embedding, N output
width of a layer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from loramux_adapters import LoraModule, Package, PackageError
from loramux_adapters.contents import Edit, EditKind
from loramux_server.lora.affine import Affine
from loramux_server.lora.bottleneck import pack_bottlenecks
from loramux_server.lora.edits import Edits, LayerEdit
from loramux_server.lora.module_edits import (
    EmbeddingEdit,
    LowRank,
    OutputEdit,
    ParameterEdit,
    RouterEdit,
    TokenRows,
)
from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.packed_edits import (
    ROWS_AT_ONCE,
    BaseLayers,
    Found,
    Read,
    check_factor,
    found_by_module,
    layer_edit,
    split_edits,
    stored_dtype,
    weight_rows,
)
from loramux_server.lora.packed_experts import pack_experts
from loramux_server.lora.packed_head import pack_head
from loramux_server.lora.packed_virtual import pack_virtual

Change = TypeVar("Change", Affine, LayerEdit)


def pack_edits(package: Package, base: BaseLayers, read: Read) -> Edits | None:
    """Return the edits of `package`, besides low-rank changes in the slab; None if it has none.

    Raises:
        PackageError: The base does not support an edit.
    """
    found = found_by_module(package)
    _drop_what_base_has(package, found, base, read)
    if base.vocabulary.is_tied:
        _share(package, found, base)
    layers: dict[LayerPlace, LayerEdit] = {}
    modules = pack_bottlenecks(package, base, read)
    routers = {shape.router for shape in base.experts.values()}
    chosen: dict[str, RouterEdit] = {}
    for module, of_module in found.items():
        place = base.places.get(module)
        if of_module.is_low_rank_alone and (place or of_module.low_rank is None):
            continue
        if place:
            layers[place] = layer_edit(module, of_module, base, read)
        elif module in routers:
            chosen[module] = _router_edit(module, of_module, base, read)
        elif module == base.vocabulary.embedding:
            modules[module] = _embedding_edit(module, of_module, base, read)
        elif module == base.vocabulary.output:
            modules[module] = _output_edit(module, of_module, base, read)
        else:
            modules[module] = _parameter_edit(module, of_module, base, read)
    affine, layers = split_edits(layers, base.feeders)
    edits = Edits(
        _by_group(affine),
        _by_group(layers),
        {name: edit for name, edit in modules.items() if not base.is_outer_module(name)},
        outer_modules={name: edit for name, edit in modules.items() if base.is_outer_module(name)},
        vocab_size=base.vocabulary.size_for(package.contents),
        routers=chosen,
        experts=pack_experts(package, base.experts, base.dtype, read),
        virtual=pack_virtual(package.virtual, read) if package.virtual else None,
        head=pack_head(package, base.heads, read),
    )
    return edits if edits else None


def _by_group(found: Mapping[LayerPlace, Change]) -> dict[int, dict[int, Change]]:
    by_group: dict[int, dict[int, Change]] = {}
    for place, value in found.items():
        by_group.setdefault(place.group, {})[place.part] = value
    return by_group


def _drop_what_base_has(
    package: Package, found: dict[str, Found], base: BaseLayers, read: Read
) -> None:
    """Drop embedding weights that equal the base's, which PEFT saves as a precaution."""
    for edit in package.edits:
        if edit.kind is EditKind.SHARED_WEIGHT and edit.module in (
            base.vocabulary.embedding,
            base.vocabulary.output,
        ):
            value_NK = base.as_held(edit.module, "weight", read(edit.tensor)).float()
            spans = range(0, len(value_NK), ROWS_AT_ONCE)
            if all(
                torch.equal(
                    value_NK[at : at + ROWS_AT_ONCE].to(base.device),
                    base.rows(edit.module, at, min(at + ROWS_AT_ONCE, len(value_NK))),
                )
                for at in spans
            ):
                del found[edit.module].parameters["weight"]


def _share(package: Package, found: dict[str, Found], base: BaseLayers) -> None:
    """Apply edits of one tied module to the other one, too, unless that has its own."""
    for edit in package.edits:
        if edit.kind is EditKind.TOKENS and edit.module == base.vocabulary.embedding:
            other = found.setdefault(base.vocabulary.output, Found())
            other.tokens = other.tokens or edit
        elif edit.kind is EditKind.SHARED_WEIGHT and found[edit.module].parameters:
            name = (
                base.vocabulary.output
                if edit.module == base.vocabulary.embedding
                else base.vocabulary.embedding
            )
            found.setdefault(name, Found()).parameters.setdefault("weight", edit.tensor)


def _embedding_edit(module: str, found: Found, base: BaseLayers, read: Read) -> EmbeddingEdit:
    """Return the edit of the embeddings.

    DoRA scales each column of the changed weight to the learned magnitude.
    """
    low_rank = found.low_rank
    if found.kinds.keys() - {EditKind.MAGNITUDE} or (low_rank and not low_rank.is_embedding):
        raise PackageError(
            f"module {module} is an embedding, which supports only LoRA for embeddings",
            "ADAPTER_BASE_MISMATCH",
        )
    edit = EmbeddingEdit(rows=_rows(module, found, base, read))
    if "weight" in found.parameters:
        edit = replace(edit, weight_VK=_as_stored(module, "weight", found, base, read))
    if low_rank is None:
        return edit
    a_VR, b_KR = read(low_rank.a).T.contiguous(), low_rank.scale * read(low_rank.b)
    output_K = None
    if EditKind.MAGNITUDE in found.kinds:
        squares_K = torch.zeros(len(b_KR), device=base.device)
        rows = weight_rows(module, found, base, read)
        there_VR, there_RK = a_VR.to(base.device), b_KR.to(base.device).T
        for start in range(0, len(a_VR), ROWS_AT_ONCE):
            end = min(start + ROWS_AT_ONCE, len(a_VR))
            changed_VK = torch.addmm(rows(start, end), there_VR[start:end], there_RK)
            squares_K += changed_VK.square().sum(0)
        output_K = read(found.kinds[EditKind.MAGNITUDE]) / squares_K.sqrt().cpu()
        check_factor(module, output_K)
    return replace(edit, a_VR=a_VR, b_KR=b_KR, output_K=output_K)


def _output_edit(module: str, found: Found, base: BaseLayers, read: Read) -> OutputEdit:
    layer = layer_edit(module, found, base, read)
    low_rank = None
    if found.low_rank is not None:
        if found.low_rank.is_embedding:
            raise PackageError(
                f"module {module} is the output layer, but has LoRA for embeddings",
                "ADAPTER_BASE_MISMATCH",
            )
        low_rank = _low_rank(found.low_rank, read)
    rows = _rows(module, found, base, read)
    bias_N = base.bias(module)
    if rows is not None and bias_N is not None:
        # PEFT omits the bias of an output layer that has trained token rows.
        without_N = 0 if layer.weight is not None else -bias_N
        shift_N = without_N + torch.zeros_like(bias_N)
        layer = replace(layer, affine=replace(layer.affine, shift_N=shift_N))
    return OutputEdit(layer, low_rank, rows)


def _low_rank(module: LoraModule, read: Read) -> LowRank:
    return LowRank(read(module.a), module.scale * read(module.b))


def _router_edit(module: str, found: Found, base: BaseLayers, read: Read) -> RouterEdit:
    if found.kinds or found.tokens or found.parameters.keys() - {"weight"}:
        raise PackageError(
            f"module {module} is the router of a mixture of experts, which supports only low-rank "
            "updates and a replaced weight",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    weight = _as_stored(module, "weight", found, base, read) if found.parameters else None
    return RouterEdit(weight, _low_rank(found.low_rank, read) if found.low_rank else None)


def _parameter_edit(module: str, found: Found, base: BaseLayers, read: Read) -> ParameterEdit:
    if found.kinds or found.tokens or found.low_rank:
        raise PackageError(
            f"module {module} is not an adaptable layer of the base model",
            "ADAPTER_BASE_MISMATCH",
        )
    return ParameterEdit({
        name: _as_stored(module, name, found, base, read) for name in found.parameters
    })  # fmt: skip


def _as_stored(
    module: str, parameter: str, found: Found, base: BaseLayers, read: Read
) -> torch.Tensor:
    """Return a parameter of `module` in storage format, and in the module's layout."""
    tensor = found.parameters[parameter]
    held = base.as_held(module, parameter, read(tensor))
    return held.to(stored_dtype(tensor, held.dtype))


def _rows(module: str, found: Found, base: BaseLayers, read: Read) -> TokenRows | None:
    edit: Edit | None = found.tokens
    if edit is None:
        return None
    if found.low_rank is not None:
        raise PackageError(
            f"module {module} has a low-rank update and rows of single tokens, which PEFT does not "
            "combine",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    token_E, order_E = torch.tensor(edit.tokens).sort()
    row_EK = base.as_held(module, "weight", read(edit.tensor)[order_E])
    return TokenRows(token_E, row_EK, end=max(edit.tokens) + 1)
