"""What a request is answered with, and which versions it holds on to."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux.v1.generation_pb2 import COMBINATION_LINEAR, GenerateRequest, WeightedAdapter
from loramux_server.access.caller import caller
from loramux_server.services.resolved_adapters import resolve_adapters
from loramux_server.statuses import Statuses
from loramux_server.store.registry import Registry
from tests.support.packages import publish, small_package


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """Two versions of `a`, and `b`."""
    registry = Registry(tmp_path)
    for name, number in (("a", 1), ("a", 2), ("b", 3)):
        publish(registry, name, small_package(number))
    yield registry
    registry.close()


def mix(weights: dict[str, float], **fields: int) -> GenerateRequest:
    parts = [WeightedAdapter(adapter=name, weight=weight) for name, weight in weights.items()]
    return GenerateRequest(adapters=parts, **fields)  # type: ignore[arg-type]


def test_a_mix_holds_all_of_its_versions_until_its_end(registry: Registry) -> None:
    statuses = Statuses()
    a, b = registry.get("a:1"), registry.get("b")
    with resolve_adapters(mix({"a:1": 0.25, "b": -0.5}), registry, statuses) as choice:
        assert [registry.leases.num_requests(record) for record in (a, b)] == [1, 1]
        registry.delete("b")
        assert registry.blobs.path(b.digest).exists()
        assert choice.source is not None
        assert {part.digest for part in choice.source.parts} == {a.digest, b.digest}
        assert (choice.identity, choice.label) == (None, "b")
        assert choice.source.tenant == caller().tenant
        assert choice.leading == registry.source_of(b)  # whose chat template and defaults are used
        assert [(each.name, each.version) for each in choice.identities] == [("a", 1), ("b", 1)]
    assert [registry.leases.num_requests(record) for record in (a, b)] == [0, 0]
    assert statuses.usage_of(a.digest, "public").requests == 1


def test_two_versions_of_an_adapter_can_be_mixed_and_one_twice_cannot(registry: Registry) -> None:
    with resolve_adapters(mix({"a:1": 0.5, "a:2": 0.5}), registry, Statuses()) as choice:
        assert choice.source is not None
    with (
        pytest.raises(InvalidArgumentError, match="a:2 is listed twice") as caught,
        resolve_adapters(mix({"a": 0.5, "a:2": 0.5}), registry, Statuses()),
    ):
        pass
    assert caught.value.field == "adapters[1].adapter"
    assert registry.leases.num_requests(registry.get("a")) == 0


def test_one_adapter_as_it_is_is_no_mix_and_without_weight_it_is_the_base(
    registry: Registry,
) -> None:
    plain = registry.source_of(registry.get("a"))
    for request in (
        GenerateRequest(adapter="a", scale=1.0),
        mix({"a": 1.0}),
        mix({"a": 1, "b": 0}),
    ):
        with resolve_adapters(request, registry, Statuses()) as choice:
            assert choice.source == plain
    for request in (GenerateRequest(adapter="a", scale=0.0), mix({"a": 0, "b": 0})):
        with resolve_adapters(request, registry, Statuses()) as choice:
            assert choice.source is None
            assert choice.identities


@pytest.mark.parametrize(
    ("change", "request_", "field", "says"),
    [
        ({"edit_bytes": 8}, mix({"b": 1, "a": 0.5}), "adapters[1].adapter", "method lora"),
        ({"rank": 0, "method": "ia3"}, GenerateRequest(adapter="a", scale=0.5), "adapter", "ia3"),
        (
            {"rank": 3},
            mix({"b": 1, "a": 0.5}, combination=COMBINATION_LINEAR),
            "combination",
            "2, 3",
        ),
        ({"invocation": (7,)}, mix({"b": 1, "a": 0.5}), "adapters", "alora_invocation_tokens"),
        ({"rank": 511}, mix({"b": 1, "a": 0.5}), "adapters", "513"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_name(
    registry: Registry, change: dict[str, object], request_: GenerateRequest, field: str, says: str
) -> None:
    registry._update(dataclasses.replace(registry.get("a"), **change))  # type: ignore[arg-type]
    with (
        pytest.raises(FailedPreconditionError, match=says) as caught,
        resolve_adapters(request_, registry, Statuses()),
    ):
        pass
    assert (caught.value.reason, caught.value.field) == ("ADAPTER_NOT_MIXABLE", field)


def test_an_adapter_of_edits_runs_as_it_is(registry: Registry) -> None:
    registry._update(dataclasses.replace(registry.get("a"), edit_bytes=8))
    with resolve_adapters(GenerateRequest(adapter="a", scale=1.0), registry, Statuses()) as choice:
        assert choice.source is not None
        assert not choice.source.parts
