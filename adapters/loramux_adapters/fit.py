"""Whether an adapter fits a base model, from names and shapes alone."""

from collections.abc import Iterable, Mapping

from loramux_adapters.errors import PackageError
from loramux_adapters.lora import LoraModule


def check_fit(modules: Iterable[LoraModule], base: Mapping[str, tuple[int, int]]) -> None:
    """Demand that each of `modules` changes a layer that the base has, in its shape.

    Args:
        modules: The changes of the adapter.
        base: Name of each layer that can be changed -> (in_features, out_features).

    Raises:
        PackageError: A layer is missing or has another shape.
    """
    for module in modules:
        if module.module not in base:
            raise PackageError(
                f"module {module.module} is no layer of the base model that can be adapted",
                "ADAPTER_BASE_MISMATCH",
            )
        if (module.in_features, module.out_features) != base[module.module]:
            wanted_in, wanted_out = base[module.module]
            raise PackageError(
                f"module {module.module}: the adapter maps {module.in_features} to "
                f"{module.out_features} features, the base model {wanted_in} to {wanted_out}",
                "ADAPTER_BASE_MISMATCH",
            )
