"""Who may call what: one row for every method of our protos, and what names mean."""

import contextvars
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import loramux.v1
from loramux.errors import NotFoundError, PermissionDeniedError
from loramux.v1.adapters_pb2 import DeleteAdapterRequest, GetAdapterRequest, UploadAdapterRequest
from loramux.v1.generation_pb2 import GenerateRequest, WeightedAdapter
from loramux_server.access.caller import LOCAL_ADMIN, Caller, Permission, Role, acting, caller
from loramux_server.access.naming import settle_name
from loramux_server.access.rules import RULES, Access, Rule, check_rules, method_name
from loramux_server.inference import open_inference_pb2

USER = Caller("acme", Role.USER)
ADMIN = Caller("public", Role.ADMIN)
SEE = Rule(Permission.VIEW, "name", Access.SEE)
CHANGE = Rule(Permission.PUBLISH, "name", Access.CHANGE)
CREATE = Rule(Permission.PUBLISH, "header.name", Access.CREATE)

OF_LATER_VERSIONS = {"grpc.health.v1.Health.List"}
"""Methods that not every version of a library has which may be installed."""


def methods() -> Iterator[MethodDescriptor]:
    """Yield every method that a server answers."""
    names = [found.name for found in pkgutil.iter_modules(loramux.v1.__path__)]
    ours = [importlib.import_module(f"loramux.v1.{n}") for n in names if n.endswith("_pb2")]
    for module in [*ours, open_inference_pb2, health_pb2, reflection_pb2]:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    found = {method.full_name for method in methods()}
    assert len(found) > 20
    assert found | OF_LATER_VERSIONS == set(RULES)


def test_a_method_without_a_row_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    check_rules(health_pb2.DESCRIPTOR.services_by_name.values())
    monkeypatch.delitem(RULES, "grpc.health.v1.Health.Check")
    with pytest.raises(LookupError, match=r"grpc\.health\.v1\.Health\.Check"):
        check_rules(health_pb2.DESCRIPTOR.services_by_name.values())


NAMES = {"name", "adapter", "reference"}
"""What fields are called that name an adapter."""
OTHER_NAMES = {"ChatMessage", "Tool", "ToolChoice"}
"""Messages in which they name a tool."""


def named_fields(message: Descriptor, path: str = "") -> Iterator[str]:
    for field in message.fields:
        if field.name in NAMES and field.type == FieldDescriptor.TYPE_STRING:
            yield path + field.name
        inner = field.message_type
        is_other = inner is None or inner.GetOptions().map_entry or inner.name in OTHER_NAMES
        if not is_other:
            assert inner is not None
            mark = "[]" if field.is_repeated else ""
            yield from named_fields(inner, f"{path}{field.name}{mark}.")


@pytest.mark.parametrize("method", list(methods()), ids=lambda method: method.full_name)
def test_every_field_that_names_an_adapter_is_looked_at(method: MethodDescriptor) -> None:
    if not method.full_name.startswith("loramux."):
        return
    assert tuple(named_fields(method.input_type)) == RULES[method.full_name].fields


def test_only_health_is_for_everybody() -> None:
    free = {name for name, rule in RULES.items() if rule.permission is Permission.NONE}
    health = {f"grpc.health.v1.Health.{name}" for name in ("Check", "Watch", "List")}
    theirs = {f"inference.GRPCInferenceService.Server{name}" for name in ("Live", "Ready")}
    assert free == health | theirs


def test_a_path_of_grpc_becomes_a_name() -> None:
    assert method_name("/loramux.v1.ServerService/GetServerInfo") in RULES


def test_each_role_may_do_more_than_the_one_before() -> None:
    granted = [[p for p in Permission if Caller("a", role).may(p)] for role in Role]
    assert [len(found) for found in granted] == [2, 3, 4, 5]


def test_nobody_calls_by_default_nor_after_its_time() -> None:
    with acting(USER):
        with acting(LOCAL_ADMIN):
            assert caller() is LOCAL_ADMIN
        assert caller() is USER
    with pytest.raises(LookupError):
        contextvars.Context().run(caller)


def settled(text: str, rule: Rule, who: Caller) -> str:
    request: Any
    if rule is CREATE:
        request = UploadAdapterRequest()
        request.header.name = text
        settle_name(request, rule, who)
        return str(request.header.name)
    request = (GetAdapterRequest if rule is SEE else DeleteAdapterRequest)(name=text)
    settle_name(request, rule, who)
    return str(request.name)


@pytest.mark.parametrize("rule", [SEE, CHANGE, CREATE])
def test_a_name_without_a_tenant_is_of_the_callers(rule: Rule) -> None:
    assert settled("poet:3", rule, USER) == "acme/poet:3"
    assert settled("acme/poet", rule, USER) == "acme/poet"
    assert settled("poet", rule, ADMIN) == "poet"


def test_public_adapters_are_seen_by_all_and_changed_by_their_own() -> None:
    assert settled("public/poet", SEE, USER) == "public/poet"
    for rule in (CHANGE, CREATE):
        assert settled("public/poet", rule, ADMIN) == "public/poet"
        with pytest.raises(PermissionDeniedError, match=rule.field) as caught:
            settled("public/poet", rule, USER)
        assert (caught.value.reason, caught.value.field) == ("PERMISSION_DENIED", rule.field)


def test_what_another_tenant_has_is_not_there() -> None:
    for rule in (SEE, CHANGE):
        assert settled("other/poet", rule, ADMIN) == "other/poet"
        with pytest.raises(NotFoundError, match="'other/poet:3' is not registered") as caught:
            settled("other/poet:3", rule, USER)
        assert (caught.value.reason, caught.value.field) == ("ADAPTER_NOT_FOUND", "name")


def test_nothing_is_brought_to_another_tenant() -> None:
    with pytest.raises(PermissionDeniedError, match="'other'"):
        settled("other/poet", CREATE, USER)


def test_every_adapter_of_a_mix_is_the_callers_or_a_public_one() -> None:
    rule = RULES["loramux.v1.GenerationService.Generate"]
    request = GenerateRequest(adapters=[WeightedAdapter(adapter=n) for n in ("a", "public/b")])
    settle_name(request, rule, USER)
    assert [each.adapter for each in request.adapters] == ["acme/a", "public/b"]
    request.adapters[1].adapter = "other/b"
    with pytest.raises(NotFoundError, match="'other/b'") as caught:
        settle_name(request, rule, USER)
    assert caught.value.field == "adapters[1].adapter"


@pytest.mark.parametrize("text", ["", "Poet", "a/b/c", "poet:", "../poet", "other/Poet"])
def test_what_is_no_reference_stays_as_it_is(text: str) -> None:
    assert settled(text, SEE, USER) == text


def test_messages_without_a_header_name_nothing() -> None:
    request = UploadAdapterRequest(chunk=b"x")
    settle_name(request, CREATE, USER)
    assert not request.HasField("header")


def test_a_part_of_a_mix_without_a_name_hides_none_that_follows() -> None:
    rule = RULES["loramux.v1.GenerationService.Generate"]
    request = GenerateRequest(adapters=[WeightedAdapter(), WeightedAdapter(adapter="poet")])
    settle_name(request, rule, USER)
    assert [part.adapter for part in request.adapters] == ["", "acme/poet"]
    theirs = GenerateRequest(adapters=[WeightedAdapter(), WeightedAdapter(adapter="other/poet")])
    with pytest.raises(NotFoundError):
        settle_name(theirs, rule, USER)
