"""Packages with only low-rank updates of linear layers, which can be combined and transformed."""

from loramux_adapters.errors import PackageError
from loramux_adapters.lora_config import LoraConfig
from loramux_adapters.package import Package


def require_low_rank(package: Package, action: str) -> LoraConfig:
    """Return the config of `package` if it has only low-rank updates of linear layers.

    Args:
        package: The package.
        action: What is to be done with it, for the error.

    Raises:
        PackageError: It has something else, which would be lost.
    """
    config = package.config
    if not isinstance(config, LoraConfig):
        method = str(package.peft_config.get("peft_type"))
        raise PackageError(
            f"{action} supports low-rank updates only, not method {method}",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    if package.edits:
        edit = package.edits[0]
        raise PackageError(
            f"{action} supports low-rank updates only, but module {edit.module} has a tensor "
            f"{edit.tensor.name}, its {edit.kind}",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    if package.contents.experts:
        raise PackageError(
            f"{action} supports low-rank updates of layers only, but the adapter changes all "
            f"experts of {package.contents.experts[0].name}",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    if package.head:
        raise PackageError(
            f"{action} supports low-rank updates only, but the adapter has a head, "
            f"{package.head.weight.name}",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    embeddings = [module.module for module in package.modules if module.is_embedding]
    if embeddings:
        raise PackageError(
            f"{action} supports low-rank updates of linear layers only, but module "
            f"{embeddings[0]} is an embedding",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    return config
