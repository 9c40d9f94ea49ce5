"""The PEFT methods that are converted when they are packed."""

from collections.abc import Mapping
from pathlib import Path

from loramux_adapters.fields import Fields
from loramux_adapters.known_layers import KnownLayers
from loramux_adapters.packing import Output
from loramux_adapters.peft_folder import read_config
from loramux_adapters.sources import MAX_ERROR
from loramux_adapters.weights.adalora import FIELDS as ADALORA_FIELDS
from loramux_adapters.weights.adalora import pack_adalora
from loramux_adapters.weights.bdlora import FIELD as BLOCKS
from loramux_adapters.weights.bdlora import pack_bdlora
from loramux_adapters.weights.beft import BEFT
from loramux_adapters.weights.deft import DEFT
from loramux_adapters.weights.delora import DELORA
from loramux_adapters.weights.dense import C3A, HIRA, RANDLORA, SHIRA, SUPERTUNING
from loramux_adapters.weights.fold import Folded, Method, fold
from loramux_adapters.weights.fourierft import FOURIERFT
from loramux_adapters.weights.gralora import GRALORA
from loramux_adapters.weights.hra import HRA
from loramux_adapters.weights.lycoris import LOHA, LOKR
from loramux_adapters.weights.miss import MISS
from loramux_adapters.weights.oft import BOFT, OFT
from loramux_adapters.weights.pissa_olora import pack_pissa_olora
from loramux_adapters.weights.road import ROAD
from loramux_adapters.weights.tinylora import TINYLORA
from loramux_adapters.weights.unilora import UNILORA
from loramux_adapters.weights.vblora import VBLORA
from loramux_adapters.weights.vera import PVERA, VERA

FOLDED: Mapping[str, Method] = {
    "BEFT": BEFT,
    "BOFT": BOFT,
    "C3A": C3A,
    "DEFT": DEFT,
    "DELORA": DELORA,
    "FOURIERFT": FOURIERFT,
    "GRALORA": GRALORA,
    "HIRA": HIRA,
    "HRA": HRA,
    "LOHA": LOHA,
    "LOKR": LOKR,
    "MISS": MISS,
    "OFT": OFT,
    "PVERA": PVERA,
    "RANDLORA": RANDLORA,
    "ROAD": ROAD,
    "SHIRA": SHIRA,
    "SUPERTUNING": SUPERTUNING,
    "TINYLORA": TINYLORA,
    "UNILORA": UNILORA,
    "VBLORA": VBLORA,
    "VERA": VERA,
}
"""`peft_type` -> how it is converted."""
FIELDS_OF_FOLDED: Mapping[str, Fields] = {
    "ADALORA": ADALORA_FIELDS,
    **{name: method.fields for name, method in FOLDED.items()},
}
"""`peft_type` -> how the fields of its config are treated."""


def fold_source(
    source: Path,
    output: Output,
    *,
    notes: Mapping[str, object | None] | None = None,
    max_error: float = MAX_ERROR,
    base: KnownLayers | None = None,
) -> list[Folded]:
    """Convert the folder `source`, of one of these methods, and write the package to `output`.

    The arguments and the result are those of `loramux_adapters.pack_source`.

    Raises:
        PackageError: It is not an adapter that can be converted.
    """
    config = read_config(source)
    method = str(config.get("peft_type"))
    if method == "ADALORA":
        pack_adalora(source, output, notes=notes)
        return []
    if method == "LORA":
        if config.get(BLOCKS):
            pack_bdlora(source, output, notes=notes)
        else:
            pack_pissa_olora(source, output, notes=notes, base=base)
        return []
    return fold(source, output, FOLDED[method], notes=notes, max_error=max_error, base=base)
