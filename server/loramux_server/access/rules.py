"""The permission that each RPC requires. An RPC without a row is not served."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.descriptor import ServiceDescriptor

from loramux_server.access.caller import Permission


class Access(enum.Enum):
    """What a call does to the adapter that it names."""

    SEE = enum.auto()
    """It has to be the caller's own or public."""
    CHANGE = enum.auto()
    """It has to be the caller's own; a public one is refused as such, not hidden."""
    CREATE = enum.auto()
    """It has to be the caller's own, and need not exist."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one RPC requires."""

    permission: Permission
    field: str = ""
    """Path of the request field that names an adapter; empty if none does. `[]` follows the name
    of a repeated field."""
    access: Access = Access.SEE
    more: tuple[str, ...] = ()
    """Paths of further such fields."""

    @property
    def fields(self) -> tuple[str, ...]:
        """All paths."""
        return (self.field, *self.more) if self.field else ()


_SEE, _CHANGE, _CREATE = Access
_NONE, _VIEW, _GENERATE, _PUBLISH, _ADMINISTER = Permission

_MIX = ("adapters[].adapter",)

RULES = {
    "loramux.v1.GenerationService.Generate": Rule(_GENERATE, "adapter", _SEE, _MIX),
    "loramux.v1.GenerationService.StreamGenerate": Rule(_GENERATE, "adapter", _SEE, _MIX),
    "loramux.v1.TokenizationService.Tokenize": Rule(
        _GENERATE, "request.adapter", _SEE, ("request.adapters[].adapter",)
    ),
    "loramux.v1.TokenizationService.Detokenize": Rule(_GENERATE, "adapter", _SEE),
    "loramux.v1.ClassificationService.Classify": Rule(_GENERATE, "adapter", _SEE),
    "loramux.v1.QuestionAnsweringService.Answer": Rule(_GENERATE, "adapter", _SEE),
    "loramux.v1.EmbeddingService.Embed": Rule(_GENERATE, "adapter", _SEE),
    "loramux.v1.AdapterService.UploadAdapter": Rule(_PUBLISH, "header.name", _CREATE),
    "loramux.v1.AdapterService.ImportAdapter": Rule(_PUBLISH, "name", _CREATE),
    "loramux.v1.AdapterService.GetAdapter": Rule(_VIEW, "name", _SEE),
    "loramux.v1.AdapterService.ListAdapters": Rule(_VIEW),
    "loramux.v1.AdapterService.DeleteAdapter": Rule(_PUBLISH, "name", _CHANGE),
    "loramux.v1.AdapterService.SetAdapterTtl": Rule(_PUBLISH, "name", _CHANGE),
    "loramux.v1.AdapterService.DownloadAdapter": Rule(_PUBLISH, "name", _SEE),
    "loramux.v1.AdapterService.WatchAdapters": Rule(_VIEW, "name", _SEE),
    "loramux.v1.UploadService.StartUpload": Rule(_PUBLISH, "header.name", _CREATE),
    "loramux.v1.UploadService.SendChunks": Rule(_PUBLISH),
    "loramux.v1.UploadService.FinishUpload": Rule(_PUBLISH),
    "loramux.v1.AliasService.SetAlias": Rule(_PUBLISH, "name", _CHANGE),
    "loramux.v1.AliasService.DeleteAlias": Rule(_PUBLISH, "name", _CHANGE),
    "loramux.v1.AliasService.RollBackAlias": Rule(_PUBLISH, "name", _CHANGE),
    # The history of moves is for the owner only.
    "loramux.v1.AliasService.ListAliasMoves": Rule(_VIEW, "name", _CHANGE),
    # A pin takes memory from all tenants.
    "loramux.v1.ResidencyService.PinAdapter": Rule(_ADMINISTER, "name", _CHANGE),
    "loramux.v1.ResidencyService.UnpinAdapter": Rule(_ADMINISTER, "name", _CHANGE),
    "loramux.v1.ResidencyService.PrefetchAdapter": Rule(_GENERATE, "name", _SEE),
    # Engine crashes concern all tenants.
    "loramux.v1.QuarantineService.ListQuarantined": Rule(_ADMINISTER),
    "loramux.v1.QuarantineService.ClearQuarantined": Rule(_ADMINISTER),
    "loramux.v1.ServerService.GetServerInfo": Rule(_VIEW),
    # The load is the sum over all tenants.
    "loramux.v1.ServerService.GetServerLoad": Rule(_ADMINISTER),
    # Health checks disclose the same.
    "inference.GRPCInferenceService.ServerLive": Rule(_NONE),
    "inference.GRPCInferenceService.ServerReady": Rule(_NONE),
    "inference.GRPCInferenceService.ServerMetadata": Rule(_VIEW),
    # A model may be the base, and its version is a separate field: the service resolves the name.
    "inference.GRPCInferenceService.ModelReady": Rule(_VIEW),
    "inference.GRPCInferenceService.ModelMetadata": Rule(_VIEW),
    "inference.GRPCInferenceService.ModelInfer": Rule(_GENERATE),
    "inference.GRPCInferenceService.ModelStreamInfer": Rule(_GENERATE),
    "grpc.health.v1.Health.Check": Rule(_NONE),
    "grpc.health.v1.Health.Watch": Rule(_NONE),
    # Exists in later versions of grpcio-health-checking.
    "grpc.health.v1.Health.List": Rule(_NONE),
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": Rule(_VIEW),
}
"""Full method name -> rule."""


def method_name(path: str) -> str:
    """Return the full name `package.Service.Method` of a gRPC path `/package.Service/Method`."""
    return path.removeprefix("/").replace("/", ".")


def check_rules(services: Iterable[ServiceDescriptor]) -> None:
    """Demand a row for every method of `services`.

    Raises:
        LookupError: One has none; it must not be served.
    """
    for service in services:
        for method in service.methods:
            if method.full_name not in RULES:
                raise LookupError(f"{method.full_name} has no row in access/rules.py")
