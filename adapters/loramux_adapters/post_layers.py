"""Checks of an adapter against the modules after the base's layers, which only heads read.

Encoders have poolers there, and heads of several layers; transformers' class for a task says which
parameters. An adapter may change those that were saved with the base. All others were initialized
at random when it was trained, so it has to bring them.
"""

from collections.abc import Mapping
from dataclasses import replace

from loramux_adapters.contents import Contents, Edit, EditKind
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import PREFIX
from loramux_adapters.head import FEATURES, LABELS, Head, HeadShape
from loramux_adapters.head_contents import not_linear
from loramux_adapters.lora import LoraModule
from loramux_adapters.tensorfile import TensorInfo

_WHOLE = (EditKind.PARAMETER, EditKind.SHARED_WEIGHT, EditKind.BIAS)
_ALSO = (EditKind.MAGNITUDE, EditKind.ADDED_BIAS)


def split_post_layers(
    contents: Contents, heads: Mapping[str, HeadShape]
) -> tuple[Contents, Contents | None]:
    """Split `contents` into changes of the base's layers and changes of the modules after them.

    Args:
        contents: What the adapter changes, under its own names.
        heads: What the base has after its layers: by task, and under `FEATURES` what it has
            there without a head.
    """
    head = contents.head
    shape = heads.get(str(head.task) if head else FEATURES)
    if shape is None:
        return contents, None
    if head and head.activation:
        return contents, None
    if head and f"{shape.module}.weight" in head.parameters:
        contents = replace(contents, head=replace(head, module=shape.module))
    names = shape.modules
    if head is None:  # a class for another task prefixes the names that `AutoModel` has
        changed = contents.changed_modules
        names = {name for name in changed if {name, name.partition(".")[2]} & shape.modules}
    post_layers = Contents(
        modules=[each for each in contents.modules if each.module in names],
        edits=[each for each in contents.edits if each.module in names],
    )
    if not post_layers.changed_modules:
        return contents, None
    modules = [each for each in contents.modules if each.module not in names]
    edits = [each for each in contents.edits if each.module not in names]
    return replace(contents, modules=modules, edits=edits), post_layers


def check_head(contents: Contents, heads: Mapping[str, HeadShape]) -> None:
    """Check that a base can serve the head of an adapter.

    Args:
        contents: What the adapter changes, under the names of the base.
        heads: What the base has after its layers, by task. Where it has nothing, a head is a
            linear layer.

    Raises:
        PackageError: The head has other parts, or one is missing that the base does not bring.
    """
    head, post_layers = contents.head, contents.post_layers
    if head is None:
        return
    shape = heads.get(head.task)
    if shape is None and head.activation:
        raise PackageError(
            f"tensor {head.weight.name}: a prediction head of the adapters library's own classes "
            "needs an encoder, which the base model is not",
            "ADAPTER_BASE_MISMATCH",
        )
    if shape is None:
        first = head.module.partition(".")[0]
        linear = (f"{first}.weight", f"{first}.bias")
        more = next((name for name in head.parameters if name not in linear), None)
        if more is not None:
            raise not_linear(head.parameters[more].name, first)
        return
    if head.activation:
        _check_layers(contents, head)
        return
    if shape.fault:
        raise PackageError(
            f"adapter_config.json: task_type is '{head.task}', but the base model does not support "
            f"heads for it: {shape.fault}",
            "ADAPTER_BASE_MISMATCH",
        )
    if shape.cache_fault and contents.virtual and contents.virtual.has_cache:
        raise PackageError(
            f"adapter_config.json: task_type is '{head.task}', but the base model does not support "
            f"heads for it with prefix tuning: {shape.cache_fault}",
            "ADAPTER_BASE_MISMATCH",
        )
    given = dict(head.parameters)
    for module in post_layers.modules if post_layers else []:
        _check_low_rank(module, shape)
    for edit in post_layers.edits if post_layers else []:
        if edit.kind in _WHOLE:
            given[f"{edit.module}.{edit.parameter or 'bias'}"] = edit.tensor
        else:
            _check_vector(edit, shape)
    for name, tensor in given.items():
        _check_shape(name, tensor, shape, head.num_labels)
    _check_whole(given, shape)


def _check_layers(contents: Contents, head: Head) -> None:
    """Check that each layer of a head takes as many values as the one before it outputs."""
    width = contents.bottlenecks[0].width if contents.bottlenecks else 0
    for number in range(len(head.weights)):
        weight = head.parameters.get(f"classifier.{number}.weight")
        if weight is None or len(weight.shape) != 2 or width not in (0, weight.shape[1]):
            raise PackageError(
                f"tensor {PREFIX}classifier.{number}.weight is missing, or does not take {width} "
                "inputs",
            )
        width = weight.shape[0]
        bias = head.parameters.get(f"classifier.{number}.bias")
        if bias is not None and bias.shape != (width,):
            raise PackageError(
                f"tensor {bias.name}: shape {shown(list(bias.shape))} is not [{width}], one value "
                "per output"
            )


def _check_low_rank(module: LoraModule, shape: HeadShape) -> None:
    wanted = shape.parameters.get(f"{module.module}.weight", ())
    if module.is_embedding or len(wanted) != 2:
        raise PackageError(
            f"module {module.module} of {shape.architecture} is not a linear layer: after the "
            "layers of the base model, only low-rank updates of linear layers are supported",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    if (module.out_features, module.in_features) != wanted:
        raise PackageError(
            f"module {module.module}: the adapter maps {module.in_features} to "
            f"{module.out_features} features, but {shape.architecture} maps {wanted[1]} to "
            f"{wanted[0]}",
            "ADAPTER_BASE_MISMATCH",
        )


def _check_vector(edit: Edit, shape: HeadShape) -> None:
    if edit.kind not in _ALSO:
        raise PackageError(
            f"tensor {edit.tensor.name}: the {edit.kind} of module {edit.module}, which comes "
            "after the layers of the base model, is not supported; expected LoRA, DoRA, biases or "
            "modules_to_save",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    if edit.kind is EditKind.ADDED_BIAS and f"{edit.module}.bias" not in shape.parameters:
        raise PackageError(
            f"tensor {edit.tensor.name}: lora_bias of adapter_config.json needs a bias, but module "
            f"{edit.module} of {shape.architecture} has none",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    wanted = shape.parameters[f"{edit.module}.weight"][0]
    if edit.width != wanted:
        raise PackageError(
            f"tensor {edit.tensor.name}: the {edit.kind} has {edit.width} values, but the layer "
            f"of {shape.architecture} has {wanted} outputs",
            "ADAPTER_BASE_MISMATCH",
        )


def _check_shape(name: str, tensor: TensorInfo, shape: HeadShape, num_labels: int) -> None:
    wanted = shape.parameters.get(name)
    if wanted is None:
        raise PackageError(
            f"tensor {tensor.name}: {shape.architecture} has no parameter {name} after the layers "
            f"of the base model; it has {', '.join(sorted(shape.parameters))}",
            "ADAPTER_BASE_MISMATCH",
        )
    wanted = tuple(num_labels if size == LABELS else size for size in wanted)
    if tensor.shape != wanted:
        raise PackageError(
            f"tensor {tensor.name}: shape {shown(list(tensor.shape))} is not {list(wanted)}, the "
            f"shape of {name} in {shape.architecture} with {num_labels} outputs",
            "ADAPTER_BASE_MISMATCH",
        )


def _check_whole(given: Mapping[str, TensorInfo], shape: HeadShape) -> None:
    """Check that the adapter or the base brings every parameter."""
    missing = [name for name in shape.parameters if name not in given and name not in shape.brought]
    if not missing:
        return
    name = missing[0]
    if name == f"{shape.module}.bias":
        fault = f"the adapter has the weight, but {shape.architecture} has a bias as well"
    else:
        fault = (
            f"{shape.architecture} has it after the layers of the base model, which was saved "
            "without it, so the adapter was trained with random values for it; PEFT saves them "
            f"if modules_to_save has {name.rpartition('.')[0]!r}"
        )
    raise PackageError(
        f"tensor {PREFIX}{name} is missing: {fault}",
        "ADAPTER_BASE_MISMATCH",
    )
