"""Adapter packages: read and validate what PEFT saved, and pack it into one content-addressed file.

Needs only the standard library, so that the client can pack before it uploads and the server can
validate before it loads. `loramux_adapters.weights` needs numpy, `loramux_adapters.signing` needs
cryptography, and `loramux_adapters.train` needs PEFT and transformers.
"""

from loramux_adapters.errors import PackageError
from loramux_adapters.fit import check_fit
from loramux_adapters.lora import LoraModule
from loramux_adapters.names import check_adapter_name, check_name
from loramux_adapters.package import Package, read_package
from loramux_adapters.packing import pack
from loramux_adapters.sources import open_package, open_source, pack_source
from loramux_adapters.unpack import unpack

__all__ = [
    "LoraModule",
    "Package",
    "PackageError",
    "check_adapter_name",
    "check_fit",
    "check_name",
    "open_package",
    "open_source",
    "pack",
    "pack_source",
    "read_package",
    "unpack",
]
