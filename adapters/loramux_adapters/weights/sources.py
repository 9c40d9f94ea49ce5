"""Adapters as other tools save them, packed."""

from collections.abc import Mapping
from pathlib import Path

from loramux_adapters.package import Output, is_peft_folder, pack, read_config
from loramux_adapters.weights.adalora import pack_adalora


def pack_source(source: Path, output: Output, *, notes: Mapping[str, object] | None = None) -> None:
    """Write `source`, whichever tool saved it, to `output` as a package.

    A LoRA of PEFT is packed as it is. AdaLoRA is folded to LoRA.

    Raises:
        PackageError: It is not an adapter that can be served.
    """
    if is_peft_folder(source) and read_config(source).get("peft_type") == "ADALORA":
        pack_adalora(source, output, notes=notes)
    else:
        pack(source, output, notes=notes)
