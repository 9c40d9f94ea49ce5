"""What changes something, calls and the server by itself, and what the audit log tells of it."""

import re
from dataclasses import dataclass

from google.protobuf.message import Message

MAX_SHOWN = 200
"""Characters of a value that are told; what is longer is no name of anything."""

_NAMING = re.compile(r"[a-z0-9][a-z0-9._:@/-]*")
"""Of what names, digests and ids consist."""


@dataclass(frozen=True, slots=True)
class Act:
    """What a method does, and the paths of the request fields that say to what."""

    name: str
    fields: tuple[str, ...]


ACTS = {
    "loramux.v1.AdapterService.UploadAdapter": Act(
        "adapter.upload", ("header.name", "header.sha256")
    ),
    "loramux.v1.AdapterService.ImportAdapter": Act("adapter.import", ("name",)),
    "loramux.v1.AdapterService.DeleteAdapter": Act("adapter.delete", ("name",)),
    "loramux.v1.AdapterService.SetAdapterTtl": Act("adapter.set_ttl", ("name", "ttl")),
    # It changes nothing, but takes weights away.
    "loramux.v1.AdapterService.DownloadAdapter": Act("adapter.download", ("name",)),
    "loramux.v1.UploadService.StartUpload": Act("upload.start", ("header.name", "header.sha256")),
    "loramux.v1.UploadService.FinishUpload": Act("upload.finish", ("upload_id",)),
    "loramux.v1.AliasService.SetAlias": Act("alias.set", ("name", "alias", "split")),
    "loramux.v1.AliasService.DeleteAlias": Act("alias.delete", ("name", "alias")),
    "loramux.v1.AliasService.RollBackAlias": Act("alias.roll_back", ("name", "alias")),
    "loramux.v1.ResidencyService.PinAdapter": Act("adapter.pin", ("name",)),
    "loramux.v1.ResidencyService.UnpinAdapter": Act("adapter.unpin", ("name",)),
    "loramux.v1.QuarantineService.ClearQuarantined": Act("quarantine.clear", ("key",)),
}
"""Full name of the method -> what it does."""

ADAPTER_RESOLVE = "adapter.resolve"
"""The server fetched an adapter because the caller named it."""
QUARANTINE_SET = "quarantine.set"
"""The server refuses something from now on."""
DIRECTORY_ADD = "directory.add"
"""The server serves what it found in its directory of adapters."""
DIRECTORY_REMOVE = "directory.remove"
"""It serves it no more, because it is not there any more."""


def targets(method: str, request: Message) -> dict[str, str]:
    """Return what `request` says of the target of an act, by field; nothing if it is no act."""
    act = ACTS.get(method)
    found = {field: _value(request, field) for field in act.fields} if act else {}
    return {field: value for field, value in found.items() if value}


def _value(message: Message, path: str) -> str:
    *way, field = path.split(".")
    for step in way:
        message = getattr(message, step)
    value = getattr(message, field)
    text = " ".join(str(value).split())
    # What is no name may be anything, such as a path or a key in the wrong place.
    is_telling = not text or not isinstance(value, str) or _NAMING.fullmatch(value)
    return text if is_telling and len(text) <= MAX_SHOWN else f"{len(text)} characters"
