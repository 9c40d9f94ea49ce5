"""Adapters as other tools and methods save them, packed."""

from collections.abc import Mapping
from pathlib import Path

from loramux_adapters.base import BaseFolder
from loramux_adapters.fields import Fields
from loramux_adapters.package import Output, is_peft_folder, pack, read_config
from loramux_adapters.weights.adalora import FIELDS as ADALORA_FIELDS
from loramux_adapters.weights.adalora import pack_adalora
from loramux_adapters.weights.fold import MAX_ERROR, Folded, Method, fold
from loramux_adapters.weights.lycoris import LOHA, LOKR
from loramux_adapters.weights.vera import VERA

FOLDED: Mapping[str, Method] = {"LOHA": LOHA, "LOKR": LOKR, "VERA": VERA}
"""Value of `peft_type` -> how it becomes a LoRA."""
FIELDS_OF_FOLDED: Mapping[str, Fields] = {
    "ADALORA": ADALORA_FIELDS,
    **{name: method.fields for name, method in FOLDED.items()},
}
"""Value of `peft_type` -> what becomes of the fields of its config."""


def pack_source(
    source: Path,
    output: Output,
    *,
    notes: Mapping[str, object] | None = None,
    max_error: float = MAX_ERROR,
    base: BaseFolder | None = None,
) -> list[Folded]:
    """Write `source`, whichever tool saved it, to `output` as a package.

    What is served is packed as it is. AdaLoRA, LoHa, LoKr and VeRA are folded to LoRA.

    Args:
        source: A folder or a package.
        output: What to write to.
        notes: Notes in place of those of the folder.
        max_error: Share of a layer's change that may be lost where its rank is too high for LoRA.
        base: The model that it is for, which VeRA needs.

    Returns:
        What became of each layer of LoHa, LoKr or VeRA.

    Raises:
        PackageError: It is not an adapter that can be served.
    """
    method = str(read_config(source).get("peft_type")) if is_peft_folder(source) else ""
    if method == "ADALORA":
        pack_adalora(source, output, notes=notes)
    elif method in FOLDED:
        return fold(source, output, FOLDED[method], notes=notes, max_error=max_error, base=base)
    else:
        pack(source, output, notes=notes)
    return []
