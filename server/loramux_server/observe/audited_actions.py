"""Audited actions, of callers and of the server itself, and what the audit log has of them."""

import re
from dataclasses import dataclass

from google.protobuf.message import Message

MAX_SHOWN = 200
"""Longest value that is logged, in characters; no name is longer."""

_NAMING = re.compile(r"[a-z0-9][a-z0-9._:@/-]*")
"""The form of names, digests and ids."""


@dataclass(frozen=True, slots=True)
class AuditedAction:
    """The action of a method, and the paths of the request fields that name its target."""

    name: str
    fields: tuple[str, ...]


AUDITED_ACTIONS = {
    "loramux.v1.AdapterService.UploadAdapter": AuditedAction(
        "adapter.upload", ("header.name", "header.sha256")
    ),
    "loramux.v1.AdapterService.ImportAdapter": AuditedAction("adapter.import", ("name",)),
    "loramux.v1.AdapterService.DeleteAdapter": AuditedAction("adapter.delete", ("name",)),
    "loramux.v1.AdapterService.SetAdapterTtl": AuditedAction("adapter.set_ttl", ("name", "ttl")),
    # Changes nothing, but discloses the weights.
    "loramux.v1.AdapterService.DownloadAdapter": AuditedAction("adapter.download", ("name",)),
    "loramux.v1.UploadService.StartUpload": AuditedAction(
        "upload.start", ("header.name", "header.sha256")
    ),
    "loramux.v1.UploadService.FinishUpload": AuditedAction("upload.finish", ("upload_id",)),
    "loramux.v1.AliasService.SetAlias": AuditedAction("alias.set", ("name", "alias", "split")),
    "loramux.v1.AliasService.DeleteAlias": AuditedAction("alias.delete", ("name", "alias")),
    "loramux.v1.AliasService.RollBackAlias": AuditedAction("alias.roll_back", ("name", "alias")),
    "loramux.v1.ResidencyService.PinAdapter": AuditedAction("adapter.pin", ("name",)),
    "loramux.v1.ResidencyService.UnpinAdapter": AuditedAction("adapter.unpin", ("name",)),
    "loramux.v1.QuarantineService.ClearQuarantined": AuditedAction("quarantine.clear", ("key",)),
}
"""Full name of the method -> its action."""

ADAPTER_RESOLVE = "adapter.resolve"
"""The server fetched an adapter because a request named it."""
QUARANTINE_SET = "quarantine.set"
"""The server quarantined a request or an adapter."""
DIRECTORY_ADD = "directory.add"
"""The server registered an adapter that it found in its directory."""
DIRECTORY_REMOVE = "directory.remove"
"""The server dropped an adapter that is no longer in its directory."""


def targets(method: str, request: Message) -> dict[str, str]:
    """Return the fields of `request` that name the target; empty if `method` is not audited."""
    action = AUDITED_ACTIONS.get(method)
    found = {field: _value(request, field) for field in action.fields} if action else {}
    return {field: value for field, value in found.items() if value}


def _value(message: Message, path: str) -> str:
    *way, field = path.split(".")
    for step in way:
        message = getattr(message, step)
    value = getattr(message, field)
    text = " ".join(str(value).split())
    # Anything that is not a name is withheld: it may be a path, or a key in the wrong field.
    is_telling = not text or not isinstance(value, str) or _NAMING.fullmatch(value)
    return text if is_telling and len(text) <= MAX_SHOWN else f"{len(text)} characters"
