"""What of a package is not served where an encoder reads a text, and a decoder writes another."""

from loramux_adapters import Package, PackageError


def check_seq2seq(package: Package) -> None:
    """Demand that `package` has nothing that cannot be served on such a base model.

    Raises:
        PackageError: It has; the message names it, and what would be right.
    """
    served = "the base model has an encoder and a decoder, on which adapters are served that"
    if package.contents.virtual:
        raise PackageError(
            f"the adapter brings virtual tokens (peft_type {package.method.upper()}); {served} "
            "change its layers, as LORA and IA3 do",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    if package.task:
        raise PackageError(
            f"the adapter was trained for task_type {package.task}; {served} write texts, "
            "SEQ_2_SEQ_LM",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
