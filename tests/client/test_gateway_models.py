"""What the gateway lists as models."""

from loramux import _adapter_wire, _server_wire
from loramux.gateway.models import models
from loramux.v1 import adapters_pb2, server_pb2


def test_an_adapter_that_is_called_like_the_base_is_listed_by_what_means_it() -> None:
    info = server_pb2.GetServerInfoResponse(base_model=server_pb2.BaseModel(name="base"))
    server = _server_wire.server_info(info)
    adapters = [
        _adapter_wire.adapter(
            adapters_pb2.Adapter(name=name, tenant=tenant, version=2, reference=f"{reference}:2")
        )
        for name, tenant, reference in (
            ("base", "acme", "base"), ("base", "public", "public/base"), ("other", "acme", "other"),
        )
    ]  # fmt: skip
    reported = models(server, adapters)["data"]
    assert isinstance(reported, list)
    assert [model["id"] for model in reported] == ["base", "acme/base", "public/base", "other"]
