"""Checks whether an adapter fits a base model, from names and shapes alone."""

from collections.abc import Container, Iterable, Mapping

from loramux_adapters.base_names import is_vision_module
from loramux_adapters.bottleneck_sites import site_of
from loramux_adapters.contents import Bottleneck, Contents, Edit, EditKind, VirtualTokens
from loramux_adapters.errors import PackageError
from loramux_adapters.experts import ExpertsShape, check_experts
from loramux_adapters.head import HeadShape
from loramux_adapters.lora import LoraModule
from loramux_adapters.nearest import nearest
from loramux_adapters.post_layers import check_head
from loramux_adapters.token_shape import TokenShape


def check_fit(
    contents: Contents,
    base: Mapping[str, tuple[int, int]],
    parameters: Mapping[str, tuple[int, ...]] | None = None,
    token: TokenShape | None = None,
    experts: Mapping[str, ExpertsShape] | None = None,
    no_vision_reason: str = "",
    heads: Mapping[str, HeadShape] | None = None,
) -> None:
    """Check that the base has the modules that an adapter changes, with matching shapes.

    Changes of vision modules are checked by `check_vision`.

    Args:
        contents: The adapter's changes.
        base: Name of each layer that can be changed -> (in_features, out_features). For an
            embedding these are the vocabulary size and the embedding width.
        parameters: Name of each parameter that can be replaced -> its shape.
        token: The base's `TokenShape`; None if unknown.
        experts: Name of each layer's experts that can be changed -> their shape.
        no_vision_reason: For the error: why the base takes no images; empty if it does.
        heads: What the base has after its layers, by task; None if unknown.

    Raises:
        PackageError: A module is missing or has another shape.
    """
    if contents.virtual:
        _check_virtual(contents.virtual, token)
    if heads is not None:
        check_head(contents, heads)
    head = contents.head
    if head and not heads and head.is_linear and token and head.width != token.width:
        raise PackageError(
            f"tensor {head.weight.name}: the head takes {head.width} values per token, but the "
            f"base model outputs {token.width}",
            "ADAPTER_BASE_MISMATCH",
        )
    names = {module.module for module in contents.modules}
    names |= {edit.module for edit in contents.edits if not _is_of_parameter(edit, base)}
    for name in sorted(names):
        if name not in base:
            raise no_layer(name, no_vision_reason, base)
    for module in contents.modules:
        _check_features(module, base[module.module])
    for edit in contents.edits:
        if _is_of_parameter(edit, base):
            _check_parameter(edit, parameters or {}, no_vision_reason)
        else:
            _check_vector(edit, base[edit.module])
    for change in contents.experts:
        check_experts(change, (experts or {}).get(change.module))
    widths = {shape.router: (shape.width, shape.count) for shape in (experts or {}).values()}
    for module in contents.routers:
        _check_features(module, widths[module.module])
    for bottleneck in contents.bottlenecks:
        _check_bottleneck(bottleneck, base, {n.rpartition(".")[0] for n in parameters or ()})


def check_vision(
    contents: Contents,
    layers: Mapping[str, tuple[int, int]],
    parameters: Mapping[str, tuple[int, ...]],
) -> None:
    """Check that the changes of vision modules are supported and fit.

    Supported are LoRA and DoRA of linear layers, and replaced parameters.

    Args:
        contents: The changes of vision modules.
        layers: Name of each linear vision layer -> (in_features, out_features).
        parameters: Name of each parameter of vision modules -> its shape.

    Raises:
        PackageError: A change is not supported or does not fit.
    """
    for module in contents.modules:
        if contents.invocation:
            raise PackageError(
                f"module {module.module} is a vision module, which alora_invocation_tokens does "
                "not support: an image has no position where the adapter could begin",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        if module.module not in layers or module.is_embedding:
            raise PackageError(
                f"module {module.module} is a vision module, but not a linear layer: low-rank "
                "updates are supported on linear layers only",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        _check_features(module, layers[module.module])
    for edit in contents.edits:
        if edit.kind is EditKind.MAGNITUDE and edit.module in layers:
            if f"{edit.module}.weight" not in parameters:
                raise PackageError(
                    f"module {edit.module}: DoRA needs the weights of the base, which are "
                    "quantized",
                    "UNSUPPORTED_ADAPTER_FEATURE",
                )
            _check_vector(edit, layers[edit.module])
        elif edit.kind in (EditKind.BIAS, EditKind.PARAMETER):
            _check_parameter(edit, parameters)
        else:
            raise PackageError(
                f"tensor {edit.tensor.name}: the {edit.kind} of vision module {edit.module} is not "
                "supported; expected LoRA, DoRA, biases or modules_to_save",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )


def no_layer(module: str, no_vision_reason: str = "", layers: Iterable[str] = ()) -> PackageError:
    """Return the error for a `module` that the base does not have.

    Args:
        module: Its name.
        no_vision_reason: As in `check_fit`.
        layers: Names of the base's layers; the error names the most similar ones.
    """
    if no_vision_reason and is_vision_module(module):
        fault = f"is a vision module, but {no_vision_reason}"
    else:
        fault = "is not an adaptable layer of the base model"
        if found := nearest(module, layers):
            fault += f"; similar names: {', '.join(found)}"
    return PackageError(f"module {module} {fault}", "ADAPTER_BASE_MISMATCH")


def _check_features(module: LoraModule, wanted: tuple[int, int]) -> None:
    if (module.in_features, module.out_features) != wanted:
        raise PackageError(
            f"module {module.module}: the adapter maps {module.in_features} to "
            f"{module.out_features} features, but the base model maps {wanted[0]} to {wanted[1]}",
            "ADAPTER_BASE_MISMATCH",
        )


def _is_of_parameter(edit: Edit, base: Mapping[str, tuple[int, int]]) -> bool:
    """Return whether `edit` is checked against a parameter of the base, not against a layer."""
    if edit.kind is EditKind.BIAS:
        return edit.module not in base  # for example, the bias of a norm
    return edit.kind in (EditKind.PARAMETER, EditKind.SHARED_WEIGHT, EditKind.TOKENS)


def _check_parameter(
    edit: Edit, parameters: Mapping[str, tuple[int, ...]], no_vision_reason: str = ""
) -> None:
    name = f"{edit.module}.{edit.parameter or 'bias'}"
    shape = edit.tensor.shape
    if name not in parameters and no_vision_reason and is_vision_module(edit.module):
        raise no_layer(edit.module, no_vision_reason)
    if name not in parameters:
        raise PackageError(
            f"tensor {edit.tensor.name}: {name} is not a parameter of the base model that an "
            "adapter can replace",
            "ADAPTER_BASE_MISMATCH",
        )
    wanted = parameters[name]
    if edit.kind is EditKind.TOKENS:
        outside = [token for token in edit.tokens if token >= wanted[0]]
        if outside:
            raise PackageError(
                f"tensor {edit.tensor.name}: it has a row for token {outside[0]}, but the base "
                f"model has {wanted[0]} tokens",
                "ADAPTER_BASE_MISMATCH",
            )
        wanted = (len(edit.tokens), *wanted[1:])
    if shape != wanted:
        raise PackageError(
            f"tensor {edit.tensor.name}: the {edit.kind} has shape {list(shape)}, but that of the "
            f"base model has {list(wanted)}",
            "ADAPTER_BASE_MISMATCH",
        )


def _check_vector(edit: Edit, features: tuple[int, int]) -> None:
    is_input = edit.kind is EditKind.INPUT_FACTOR
    wanted = features[0 if is_input else 1]
    if edit.width != wanted:
        raise PackageError(
            f"tensor {edit.tensor.name}: the {edit.kind} has {edit.width} values, but the layer of "
            f"the base model has {wanted} {'inputs' if is_input else 'outputs'}",
            "ADAPTER_BASE_MISMATCH",
        )


def _check_bottleneck(
    bottleneck: Bottleneck, base: Mapping[str, tuple[int, int]], others: Container[str]
) -> None:
    site = site_of(bottleneck.layer, bottleneck.place, base, others)
    if site is None:
        raise PackageError(
            f"module {bottleneck.module}: the base model has no layer {bottleneck.layer} with the "
            "parts that the adapters library expects",
            "ADAPTER_BASE_MISMATCH",
        )
    if base[site.output][1] != bottleneck.width:
        raise PackageError(
            f"module {bottleneck.module}: it has width {bottleneck.width}, but the base model has "
            f"{base[site.output][1]}",
            "ADAPTER_BASE_MISMATCH",
        )


def _check_virtual(virtual: VirtualTokens, token: TokenShape | None) -> None:
    if token is None:
        raise PackageError(
            "the adapter has virtual tokens, but the shape of the base model's tokens is not known",
            "ADAPTER_BASE_MISMATCH",
        )
    if virtual.num_sequences != token.num_sequences:
        raise PackageError(
            f"adapter_config.json: num_transformer_submodules is {virtual.num_sequences}, but the "
            f"base model has {token.num_sequences}",
            "ADAPTER_BASE_MISMATCH",
        )
    if virtual.has_cache and token.has_recurrent_layers:
        raise PackageError(
            f"tensor {virtual.tensor.name}: the adapter has keys and values, but the base model "
            "has recurrent layers, which keep none; use virtual tokens that are embeddings, as in "
            "prompt tuning",
            "ADAPTER_BASE_MISMATCH",
        )
    if virtual.has_cache and not token.cache:
        raise PackageError(
            f"tensor {virtual.tensor.name}: the adapter has keys and values, but neither the base "
            "model nor PEFT supports them here; use virtual tokens that are embeddings, as in "
            "prompt tuning",
            "ADAPTER_BASE_MISMATCH",
        )
    if virtual.has_cache:
        given = ((virtual.num_heads, virtual.head_width, virtual.head_width),) * virtual.num_layers
        if given != token.cache:
            heads, width, _ = given[0]
            raise PackageError(
                f"tensor {virtual.tensor.name}: it has keys and values for {len(given)} layers "
                f"of {heads} heads of width {width}, but the base model has {_layers(token)}",
                "ADAPTER_BASE_MISMATCH",
            )
    elif virtual.width != token.width:
        raise PackageError(
            f"tensor {virtual.tensor.name}: an embedding has {virtual.width} values, but one of "
            f"the base model has {token.width}",
            "ADAPTER_BASE_MISMATCH",
        )


def _layers(token: TokenShape) -> str:
    kinds = [
        f"{heads} heads of widths {key} and {value}" for heads, key, value in sorted({*token.cache})
    ]
    return f"{len(token.cache)} layers of {' or '.join(kinds)}"
