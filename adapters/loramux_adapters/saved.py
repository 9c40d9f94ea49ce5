"""Modules that were trained in full and saved beside an adapter: `modules_to_save`.

PEFT also saves the embeddings if the vocabulary was resized or they are adapted. Semantics follow
`peft.utils.save_and_load` and `ModulesToSaveWrapper`, PEFT 0.21.
"""

from collections.abc import Collection, Mapping

from loramux_adapters.contents import Edit, EditKind
from loramux_adapters.errors import PackageError
from loramux_adapters.fields import PREFIX, invalid, names, path_of
from loramux_adapters.lora import is_outer
from loramux_adapters.tensorfile import TensorInfo

MAX_SAVED_NAMES = 64
_BASE_WEIGHT = ".base_layer.weight"
_TOKEN_ADAPTER = ".token_adapter"
_AGAIN = (".modules_to_save.", ".original_module.")


def saved_names(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return `modules_to_save` of a parsed config.

    Raises:
        PackageError: The field is malformed.
    """
    found = names(config, "modules_to_save")
    if len(found) > MAX_SAVED_NAMES:
        raise invalid("modules_to_save", f"has {len(found)} names; the limit is {MAX_SAVED_NAMES}")
    return found


def saved_edit(
    tensor: TensorInfo, saved: tuple[str, ...], served: str, prefix: str = PREFIX
) -> Edit:
    """Return the replacement of a parameter that `tensor` is.

    Args:
        tensor: A tensor that does not belong to the method.
        saved: The names in `modules_to_save`.
        served: For the error: which other tensors are supported.
        prefix: PEFT's prefix of its name.

    Raises:
        PackageError: It is neither of a module in `saved` nor an embedding's weight.
    """
    path = path_of(tensor.name, prefix)
    module, _, parameter = path.rpartition(".")
    if path.endswith(_BASE_WEIGHT):
        module = path.removesuffix(_BASE_WEIGHT).removesuffix(_TOKEN_ADAPTER)
        return Edit(module, EditKind.SHARED_WEIGHT, tensor, "weight")
    if is_inside(module, saved):
        return Edit(module, EditKind.PARAMETER, tensor, parameter)
    if module and parameter == "weight" and is_outer(module):
        return Edit(module, EditKind.SHARED_WEIGHT, tensor, parameter)
    raise PackageError(
        f"tensor {tensor.name} is not supported; expected {served}, or tensors of modules in "
        "modules_to_save",
        "UNSUPPORTED_ADAPTER_FEATURE",
    )


def saved_tensors(
    tensors: Mapping[str, TensorInfo], saved: tuple[str, ...]
) -> dict[str, TensorInfo]:
    """Return the tensors of modules in `saved`, trained in full, or of embeddings."""
    return {name: tensor for name, tensor in tensors.items() if _is_whole(path_of(name), saved)}


def _is_whole(path: str, saved: tuple[str, ...]) -> bool:
    module, _, parameter = path.rpartition(".")
    return is_inside(module, saved) or bool(module and parameter == "weight" and is_outer(module))


def without_repeats(
    tensors: Mapping[str, TensorInfo], saved: tuple[str, ...], prefix: str = PREFIX
) -> list[TensorInfo]:
    """Return `tensors` without duplicates.

    If a module in `saved` is also saved for another reason, such as `bias` or a resized vocabulary,
    PEFT saves the module as it was before training, and a copy, too.
    """
    return [tensor for tensor in tensors.values() if not _is_repeat(tensor, tensors, saved, prefix)]


def _is_repeat(
    tensor: TensorInfo, tensors: Mapping[str, TensorInfo], saved: tuple[str, ...], prefix: str
) -> bool:
    for infix in _AGAIN:
        module, found, parameter = tensor.name.rpartition(infix)
        # For a module with submodules, the name of the copy has the adapter's name in it.
        names = (parameter, parameter.partition(".")[2])
        if found and any(f"{module}.{name}" in tensors for name in names):
            return is_inside(path_of(module, prefix), saved)
    return False


def check_saved_alone(edits: list[Edit], adapted: Collection[str]) -> None:
    """Check that no module is both trained in full and `adapted`; PEFT does one of these.

    Raises:
        PackageError: A module is both.
    """
    for edit in edits:
        if edit.kind is EditKind.PARAMETER and edit.module in adapted:
            raise PackageError(
                f"tensor {edit.tensor.name}: module {edit.module} is adapted, and also in "
                "modules_to_save of adapter_config.json",
                "INVALID_ADAPTER_CONFIG",
            )


def is_inside(module: str, saved: tuple[str, ...]) -> bool:
    """Return whether `saved` names `module` or a module that contains it."""
    # PEFT compares the end of the name, not whole parts of it.
    parts = module.split(".")
    return any(".".join(parts[:end]).endswith(saved) for end in range(1, len(parts) + 1))
