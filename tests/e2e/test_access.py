"""Who gets what over the real socket: every method, caller and adapter with each other."""

import itertools
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from loramux.v1 import (
    adapters_pb2,
    aliases_pb2,
    classification_pb2,
    embedding_pb2,
    generation_pb2,
    quarantine_pb2,
    question_answering_pb2,
    residency_pb2,
    server_pb2,
    tokenization_pb2,
    uploads_pb2,
)
from loramux_server.access.caller import Role
from loramux_server.access.key import Key, new_key
from loramux_server.access.rules import RULES
from loramux_server.inference import open_inference_pb2
from loramux_server.store.times import now_in_utc
from tests.support.access import Keys, Outcome, call, shown
from tests.support.open_inference import asking, texts_of
from tests.support.open_inference import call as call_inference
from tests.support.packages import packed
from tests.support.server import RunningServer
from tests.support.wire import chunks, upload_header

OK, DENIED = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
UNKNOWN_CALLER, NOT_FOUND = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND
VIEWER, USER, PUBLISHER, ADMIN = Role
TARGETS = {
    "own": "acme/poet",
    "own, by its short name": "poet",
    "another tenant's": "other/clerk",
    "shared": "public/judge",
    "missing": "acme/nobody",
    "missing at another tenant": "other/ghost",
    "deleted": "acme/gone",
}
"""What a caller of tenant acme may ask for. The first two of `other` are of the same length."""
DIGEST = "0" * 64
NO_UPLOAD = "f" * 32
SILENCE = 0.1
"""Seconds for what should come to nothing: who watches what is not there is told nothing."""


@dataclass(frozen=True)
class Method:
    """How to call one method, and who should get through to which adapter."""

    least: Role | None
    """The least role; None if no key is needed."""
    mode: str
    """`see`, `change`, `create`, `upload` (an id that belongs to a tenant) or `none`."""
    request: Callable[[str], Any]
    """Adapter -> message. What changes something fails late: it would be there no more."""
    gets: frozenset[grpc.StatusCode] = field(default=frozenset({OK}))
    """Ends of a call that got through."""
    streams: tuple[bool, bool] = (False, False)


def late(code: str) -> frozenset[grpc.StatusCode]:
    return frozenset({OK, getattr(grpc.StatusCode, code)})


def header(name: str) -> adapters_pb2.UploadHeader:
    return adapters_pb2.UploadHeader(name=name, size_bytes=0, sha256=DIGEST)


def alias_move(name: str) -> aliases_pb2.SetAliasRequest:
    return aliases_pb2.SetAliasRequest(
        name=name, alias="stable", split=aliases_pb2.Split(weights={1: 1})
    )


def not_as_expected(name: str) -> aliases_pb2.DeleteAliasRequest:
    return aliases_pb2.DeleteAliasRequest(
        name=name, alias="stable", expected=aliases_pb2.Split(weights={9: 1})
    )


def generation(name: str) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(
        adapter=name, prompt="a", sampling=generation_pb2.SamplingParams(max_tokens=1)
    )


V1, OIP = "loramux.v1", "inference.GRPCInferenceService"
METHODS: dict[str, Method] = {
    f"/{V1}.GenerationService/Generate": Method(USER, "see", generation),
    f"/{V1}.GenerationService/StreamGenerate": Method(
        USER, "see", generation, streams=(False, True)
    ),
    f"/{V1}.TokenizationService/Tokenize": Method(
        USER, "see",
        lambda name: tokenization_pb2.TokenizeRequest(request=generation(name)),
    ),
    f"/{V1}.TokenizationService/Detokenize": Method(
        USER, "see",
        lambda name: tokenization_pb2.DetokenizeRequest(adapter=name, token_ids=[5]),
    ),
    f"/{V1}.ClassificationService/Classify": Method(
        USER, "see",
        lambda name: classification_pb2.ClassifyRequest(
            adapter=name, inputs=[classification_pb2.ClassifyInput(text="a")]
        ),
        frozenset({grpc.StatusCode.FAILED_PRECONDITION}),
    ),
    f"/{V1}.EmbeddingService/Embed": Method(
        USER, "see",
        lambda name: embedding_pb2.EmbedRequest(
            adapter=name, inputs=[embedding_pb2.EmbedInput(text="a")]
        ),
    ),
    f"/{V1}.QuestionAnsweringService/Answer": Method(
        USER, "see",
        lambda name: question_answering_pb2.AnswerRequest(
            adapter=name,
            inputs=[question_answering_pb2.QuestionInput(question="a", context="b")],
        ),
        frozenset({grpc.StatusCode.FAILED_PRECONDITION}),
    ),
    f"/{V1}.AdapterService/UploadAdapter": Method(
        PUBLISHER, "create", lambda name: adapters_pb2.UploadAdapterRequest(header=header(name)),
        late("INVALID_ARGUMENT"), (True, False),
    ),
    f"/{V1}.AdapterService/ImportAdapter": Method(
        PUBLISHER, "create", lambda name: adapters_pb2.ImportAdapterRequest(name=name),
        late("INVALID_ARGUMENT"),
    ),
    f"/{V1}.AdapterService/GetAdapter": Method(
        VIEWER, "see", lambda name: adapters_pb2.GetAdapterRequest(name=name)
    ),
    f"/{V1}.AdapterService/ListAdapters": Method(
        VIEWER, "none", lambda name: adapters_pb2.ListAdaptersRequest()
    ),
    f"/{V1}.AdapterService/DeleteAdapter": Method(
        PUBLISHER, "change", lambda name: adapters_pb2.DeleteAdapterRequest(name=f"{name}:1"),
        late("FAILED_PRECONDITION"),
    ),
    f"/{V1}.AdapterService/SetAdapterTtl": Method(
        PUBLISHER, "change", lambda name: adapters_pb2.SetAdapterTtlRequest(name=name)
    ),
    f"/{V1}.AdapterService/DownloadAdapter": Method(
        PUBLISHER, "see", lambda name: adapters_pb2.DownloadAdapterRequest(name=name),
        streams=(False, True),
    ),
    f"/{V1}.AdapterService/WatchAdapters": Method(
        VIEWER, "watch",
        lambda name: adapters_pb2.WatchAdaptersRequest(name=name, include_existing=True),
        streams=(False, True),
    ),
    f"/{V1}.UploadService/StartUpload": Method(
        PUBLISHER, "create", lambda name: uploads_pb2.StartUploadRequest(header=header(name)),
        late("INVALID_ARGUMENT"),
    ),
    f"/{V1}.UploadService/SendChunks": Method(
        PUBLISHER, "upload", lambda name: uploads_pb2.SendChunksRequest(upload_id=name, offset=-1),
        late("INVALID_ARGUMENT"), (True, False),
    ),
    f"/{V1}.UploadService/FinishUpload": Method(
        PUBLISHER, "upload", lambda name: uploads_pb2.FinishUploadRequest(upload_id=name),
        late("INVALID_ARGUMENT"),
    ),
    f"/{V1}.AliasService/SetAlias": Method(PUBLISHER, "change", alias_move),
    f"/{V1}.AliasService/DeleteAlias": Method(
        PUBLISHER, "change", not_as_expected, late("ABORTED")
    ),
    f"/{V1}.AliasService/RollBackAlias": Method(
        PUBLISHER, "change",
        lambda name: aliases_pb2.RollBackAliasRequest(name=name, alias="stable"),
        late("FAILED_PRECONDITION"),
    ),
    f"/{V1}.AliasService/ListAliasMoves": Method(
        VIEWER, "change", lambda name: aliases_pb2.ListAliasMovesRequest(name=name, alias="stable")
    ),
    f"/{V1}.ResidencyService/PinAdapter": Method(
        ADMIN, "change", lambda name: residency_pb2.PinAdapterRequest(name=name)
    ),
    f"/{V1}.ResidencyService/UnpinAdapter": Method(
        ADMIN, "change", lambda name: residency_pb2.UnpinAdapterRequest(name=name)
    ),
    f"/{V1}.ResidencyService/PrefetchAdapter": Method(
        USER, "see", lambda name: residency_pb2.PrefetchAdapterRequest(name=name)
    ),
    f"/{V1}.QuarantineService/ListQuarantined": Method(
        ADMIN, "none", lambda name: quarantine_pb2.ListQuarantinedRequest()
    ),
    f"/{V1}.QuarantineService/ClearQuarantined": Method(
        ADMIN, "none",
        lambda name: quarantine_pb2.ClearQuarantinedRequest(key=f"sha256:{DIGEST}"),
        frozenset({NOT_FOUND}),
    ),
    f"/{V1}.ServerService/GetServerInfo": Method(
        VIEWER, "none", lambda name: server_pb2.GetServerInfoRequest()
    ),
    f"/{V1}.ServerService/GetServerLoad": Method(
        ADMIN, "none", lambda name: server_pb2.GetServerLoadRequest()
    ),
    f"/{OIP}/ServerLive": Method(
        None, "none", lambda name: open_inference_pb2.ServerLiveRequest()
    ),
    f"/{OIP}/ServerReady": Method(
        None, "none", lambda name: open_inference_pb2.ServerReadyRequest()
    ),
    f"/{OIP}/ServerMetadata": Method(
        VIEWER, "none", lambda name: open_inference_pb2.ServerMetadataRequest()
    ),
    # Of what is not there it says that it is not ready.
    f"/{OIP}/ModelReady": Method(
        VIEWER, "none", lambda name: open_inference_pb2.ModelReadyRequest(name=name)
    ),
    f"/{OIP}/ModelMetadata": Method(
        VIEWER, "see", lambda name: open_inference_pb2.ModelMetadataRequest(name=name)
    ),
    f"/{OIP}/ModelInfer": Method(
        USER, "see", lambda name: asking(name, "a", parameters={"max_tokens": 1})
    ),
    # What fails there is told on the stream.
    f"/{OIP}/ModelStreamInfer": Method(
        USER, "none", lambda name: asking(name, "a", parameters={"max_tokens": 1}),
        streams=(True, True),
    ),
    "/grpc.health.v1.Health/Check": Method(
        None, "none", lambda name: health_pb2.HealthCheckRequest()
    ),
    "/grpc.health.v1.Health/Watch": Method(
        None, "none", lambda name: health_pb2.HealthCheckRequest(), streams=(False, True)
    ),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Method(
        VIEWER, "none",
        lambda name: reflection_pb2.ServerReflectionRequest(list_services=""),
        streams=(True, True),
    ),
}  # fmt: skip


class Tenants:
    """A server with adapters and keys of two tenants and the public one."""

    def __init__(self, keys: Keys) -> None:
        self.admin = keys.make("public", ADMIN)
        self.disabled = {role: keys.make("barred", role) for role in Role}
        keys.catalog.disabled_tenants.add("barred", now_in_utc())
        self.good = {(tenant, role): keys.make(tenant, role) for tenant in ("acme", "other")
                     for role in Role}  # fmt: skip
        some = self.good["acme", ADMIN]
        self.bad: dict[str, str | None] = {
            "no key": None,
            "no key at all": "",
            "an unknown key": new_key().text,
            "another secret": keys.with_another_secret(some).text,
            "a revoked key": keys.revoked("acme", ADMIN).text,
            "an expired key": keys.expired("acme", ADMIN).text,
        }

    def begin(self, server: RunningServer, packages: list[bytes]) -> None:
        """Fill a server that has started with these keys."""
        self.server = server
        self.channel = grpc.insecure_channel(server.target)
        names = ["acme/poet", "other/clerk", "public/judge", "acme/gone"]
        for name, package in zip(names, packages, strict=True):
            self._upload(name, package)
            self.as_admin("/loramux.v1.AliasService/SetAlias", alias_move(name))
        self.as_admin(
            "/loramux.v1.AdapterService/DeleteAdapter",
            adapters_pb2.DeleteAdapterRequest(name="acme/gone"),
        )
        self.upload_ids = {name: self._start_upload(name, packages[0] + b" ") for name in names[:3]}

    def as_admin(
        self, path: str, *requests: Any, streams: tuple[bool, bool] = (False, False)
    ) -> None:
        outcome = call(self.channel, path, requests, self.admin.text, streams=streams)
        assert outcome.code is OK, outcome

    def call(self, path: str, target: str, key: str | None, *, is_silent: bool = False) -> Outcome:
        """Return how a call ends; of one that `is_silent` nothing is expected, nor waited for."""
        method = METHODS[path]
        if method.mode == "upload":
            target = self.upload_ids.get(target if "/" in target else f"acme/{target}", NO_UPLOAD)
        return call(self.channel, path, [method.request(target)], key, streams=method.streams,
                    timeout=SILENCE if is_silent else 60)  # fmt: skip

    def _upload(self, name: str, package: bytes) -> None:
        messages = [upload_header(name, package), *chunks(package)]
        path = "/loramux.v1.AdapterService/UploadAdapter"
        self.as_admin(path, *messages, streams=(True, False))

    def _start_upload(self, name: str, package: bytes) -> str:
        start = self.channel.unary_unary(
            "/loramux.v1.UploadService/StartUpload",
            request_serializer=uploads_pb2.StartUploadRequest.SerializeToString,
            response_deserializer=uploads_pb2.StartUploadResponse.FromString,
        )
        request = uploads_pb2.StartUploadRequest(header=upload_header(name, package).header)
        return str(start(request, metadata=shown(self.admin.text)).upload_id)


@pytest.fixture(scope="module")
def tenants(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_adapters: Path
) -> Iterator[Tenants]:
    folder = tmp_path_factory.mktemp("server")
    keys = Keys(folder / "store")
    tenants = Tenants(keys)
    packages = [packed(path) for path in sorted(tiny_adapters.iterdir())]
    with RunningServer(folder, tiny_base) as server:
        tenants.begin(server, packages)
        yield tenants
        tenants.channel.close()
    keys.close()
    # At the end, so that all that the tests did is in it.
    secrets = [key.text for key in (*tenants.good.values(), tenants.admin)]
    log = server.log.read_text()
    assert not any(secret in log or secret[-43:] in log for secret in secrets)


def expected(method: Method, role: Role, tenant: str, target: str) -> grpc.StatusCode:
    """Return how a call has to end; OK stands for all ends that only who gets through sees."""
    order = list(Role)
    if method.least is None:
        return OK
    if order.index(role) < order.index(method.least):
        return DENIED
    if method.mode == "none":
        return OK
    whose = TARGETS[target].partition("/")[0] if "/" in TARGETS[target] else tenant
    exists = TARGETS[target] in ("acme/poet", "other/clerk", "public/judge") or (
        "/" not in TARGETS[target] and tenant == "acme"
    )
    owns = role is ADMIN or whose == tenant
    if method.mode == "create":
        return OK if owns else DENIED
    if method.mode == "upload":  # an id means the same for all
        whose = "acme" if "/" not in TARGETS[target] else whose
        is_open = TARGETS[target] in ("poet", "acme/poet", "other/clerk", "public/judge")
        return OK if is_open and (role is ADMIN or whose == tenant) else NOT_FOUND
    if method.mode == "change" and whose == "public" and not owns:
        return DENIED
    if not owns and whose != "public":
        return NOT_FOUND
    if method.mode == "watch":
        return OK if exists else grpc.StatusCode.DEADLINE_EXCEEDED
    return OK if exists else NOT_FOUND


def test_the_matrix_has_every_method() -> None:
    # Not every version of its library has the last one.
    found = {path[1:].replace("/", ".") for path in METHODS} | {"grpc.health.v1.Health.List"}
    assert found == set(RULES)


@pytest.mark.parametrize("path", METHODS)
def test_each_caller_gets_what_it_may_and_nothing_else(tenants: Tenants, path: str) -> None:
    method = METHODS[path]
    wrong = []
    for (tenant, role), key in tenants.good.items():
        for target, name in TARGETS.items():
            wanted = expected(method, role, tenant, target)
            is_silent = wanted is grpc.StatusCode.DEADLINE_EXCEEDED
            outcome = tenants.call(path, name, key.text, is_silent=is_silent)
            code = OK if outcome.code in method.gets else outcome.code
            if code is not wanted:
                wrong.append((tenant, str(role), target, outcome))
    assert wrong == []


@pytest.mark.parametrize("path", METHODS)
def test_who_is_not_known_gets_the_same_answer_whatever_it_asks(
    tenants: Tenants, path: str
) -> None:
    found = {
        tenants.call(path, name, key) for name in TARGETS.values() for key in tenants.bad.values()
    }
    (outcome,) = found
    assert not any(key and key[-43:] in repr(outcome) for key in tenants.bad.values())
    if METHODS[path].least is None:
        assert outcome.code is OK
    else:
        assert (outcome.code, outcome.reason) == (UNKNOWN_CALLER, "UNAUTHENTICATED")


@pytest.mark.parametrize("path", METHODS)
def test_a_disabled_tenant_gets_the_same_answer_whatever_it_asks(
    tenants: Tenants, path: str
) -> None:
    targets = [*TARGETS.values(), "barred/poet"]
    found = {
        tenants.call(path, name, key.text)
        for name in targets
        for key in (tenants.disabled[VIEWER], tenants.disabled[ADMIN])
    }
    (outcome,) = found
    if METHODS[path].least is None:
        assert outcome.code is OK
    else:
        assert (outcome.code, outcome.reason) == (DENIED, "TENANT_DISABLED")


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.parametrize("role", [VIEWER, USER, PUBLISHER])
def test_what_another_tenant_has_looks_as_if_it_were_not_there(
    tenants: Tenants, path: str, role: Role
) -> None:
    key = tenants.good["acme", role].text
    there = tenants.call(path, "other/clerk", key)
    upload_id = tenants.upload_ids["other/clerk"]
    renamed = there.renamed("clerk", "ghost").renamed(upload_id, NO_UPLOAD)
    assert renamed == tenants.call(path, "other/ghost", key)
    if METHODS[path].mode in ("see", "change"):
        missing = tenants.call(path, "acme/nobody", key).renamed("nobody", "clerk ")
        renamed = there.renamed("other/clerk", "acme/clerk ")
        assert (renamed.code, renamed.message) == (missing.code, missing.message)


@pytest.mark.parametrize("role", [USER, ADMIN])
def test_models_are_those_that_the_caller_may_see(tenants: Tenants, role: Role) -> None:
    key = tenants.good["acme", role]
    ready, reported = {}, {}
    for name in (*TARGETS.values(), "tiny"):
        request = open_inference_pb2.ModelReadyRequest(name=name)
        answer = call_inference(tenants.channel, "ModelReady", request, metadata=shown(key.text))
        ready[name] = answer.ready
        (piece,) = call_inference(
            tenants.channel, "ModelStreamInfer", metadata=shown(key.text),
            request=iter([asking(name, "a", parameters={"max_tokens": 1})]),
        )  # fmt: skip
        reported[name] = piece.error_message
    seen = {
        "poet",
        "acme/poet",
        "public/judge",
        "tiny",
        *({"other/clerk"} if role is ADMIN else ()),
    }
    assert {name for name, is_ready in ready.items() if is_ready} == seen
    assert {name for name, message in reported.items() if not message} == seen
    for name in set(reported) - seen:
        full = name if "/" in name else f"acme/{name}"
        assert reported[name] == f"NOT_FOUND: adapter {full!r} is not registered"


def test_the_version_of_a_model_may_be_an_alias(tenants: Tenants) -> None:
    metadata = shown(tenants.good["acme", USER].text)
    found = []
    for version in ("1", "stable", ""):
        request = asking("poet", "hello", version=version,
                         parameters={"temperature": 0, "max_tokens": 4})  # fmt: skip
        found.append(call_inference(tenants.channel, "ModelInfer", request, metadata=metadata))
    assert [answer.model_version for answer in found] == ["1"] * 3
    assert len({tuple(texts_of(answer)) for answer in found}) == 1


def listed(tenants: Tenants, key: Key, **fields: Any) -> list[str]:
    listing = tenants.channel.unary_unary(
        "/loramux.v1.AdapterService/ListAdapters",
        request_serializer=adapters_pb2.ListAdaptersRequest.SerializeToString,
        response_deserializer=adapters_pb2.ListAdaptersResponse.FromString,
    )
    found, token = [], ""
    while True:
        request = adapters_pb2.ListAdaptersRequest(page_token=token, **fields)
        response = listing(request, metadata=shown(key.text))
        found += [f"{adapter.tenant}/{adapter.name}" for adapter in response.adapters]
        token = response.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("size", [0, 1])
def test_lists_show_what_the_caller_may_see(tenants: Tenants, size: int) -> None:
    acme, other = (tenants.good[tenant, VIEWER] for tenant in ("acme", "other"))
    assert listed(tenants, acme, page_size=size) == ["acme/poet", "public/judge"]
    assert listed(tenants, other, page_size=size) == ["other/clerk", "public/judge"]
    assert listed(tenants, acme, page_size=size, tenant="other") == []
    assert listed(tenants, tenants.admin, page_size=size) == [
        "acme/poet", "other/clerk", "public/judge"
    ]  # fmt: skip


def test_watchers_hear_of_what_they_may_see(tenants: Tenants) -> None:
    watch = tenants.channel.unary_stream(
        "/loramux.v1.AdapterService/WatchAdapters",
        request_serializer=adapters_pb2.WatchAdaptersRequest.SerializeToString,
        response_deserializer=adapters_pb2.WatchAdaptersResponse.FromString,
    )
    key = tenants.good["acme", VIEWER].text
    changes = watch(
        adapters_pb2.WatchAdaptersRequest(include_existing=True),
        metadata=shown(key), timeout=60,
    )  # fmt: skip
    heard = list(itertools.islice(changes, 2))
    for name in ("other/clerk", "acme/poet"):
        move = alias_move(name)
        move.alias = "canary"
        tenants.as_admin("/loramux.v1.AliasService/SetAlias", move)
    heard.append(next(changes))
    changes.cancel()
    names = [f"{change.adapter.tenant}/{change.adapter.name}" for change in heard]
    assert names == ["acme/poet", "public/judge", "acme/poet"]
    # What it has to say itself to mean them.
    assert [change.adapter.reference for change in heard] == ["poet:1", "public/judge:1", "poet:1"]


@pytest.mark.parametrize("adapter", ["", "public/judge"])
def test_tenants_share_no_key_and_value_blocks(tenants: Tenants, adapter: str) -> None:
    def hits() -> float:
        return tenants.server.metrics()["loramux_prefix_cache_hit_tokens_total"]

    def generate(tenant: str) -> float:
        """Return how many tokens of the same prompt were there already."""
        request = generation_pb2.GenerateRequest(
            adapter=adapter, prompt="x" * 100,
            sampling=generation_pb2.SamplingParams(max_tokens=1),
        )  # fmt: skip
        before = hits()
        path = "/loramux.v1.GenerationService/Generate"
        key = tenants.good[tenant, USER].text
        assert call(tenants.channel, path, [request], key, streams=(False, False)).code is OK
        return hits() - before

    assert generate("acme") == 0
    assert generate("other") == 0
    assert generate("acme") == generate("other") == 96


def test_the_same_id_of_a_request_is_free_for_each_tenant(tenants: Tenants) -> None:
    streaming = tenants.channel.unary_stream(
        "/loramux.v1.GenerationService/StreamGenerate",
        request_serializer=generation_pb2.GenerateRequest.SerializeToString,
        response_deserializer=generation_pb2.StreamGenerateResponse.FromString,
    )
    request = generation_pb2.GenerateRequest(
        prompt="a", request_id="one",
        sampling=generation_pb2.SamplingParams(max_tokens=200, ignore_eos=True),
    )  # fmt: skip
    streams = []
    for tenant in ("acme", "other"):
        key = tenants.good[tenant, USER].text
        streams.append(streaming(request, metadata=shown(key)))
        next(streams[-1])
    for stream in streams:
        stream.cancel()


def test_a_move_says_whose_key_it_was(tenants: Tenants) -> None:
    key = tenants.good["acme", PUBLISHER]
    move = alias_move("poet")
    move.alias, move.moved_by = "signed", "somebody else"
    outcome = call(
        tenants.channel, "/loramux.v1.AliasService/SetAlias", [move], key.text,
        streams=(False, False),
    )  # fmt: skip
    assert outcome.code is OK
    moves = tenants.channel.unary_unary(
        "/loramux.v1.AliasService/ListAliasMoves",
        request_serializer=aliases_pb2.ListAliasMovesRequest.SerializeToString,
        response_deserializer=aliases_pb2.ListAliasMovesResponse.FromString,
    )(
        aliases_pb2.ListAliasMovesRequest(name="poet", alias="signed"),
        metadata=shown(key.text),
    )
    assert [found.moved_by for found in moves.moves] == [f"somebody else (key {key.id})"]


def test_metrics_show_no_key(tenants: Tenants) -> None:
    with urllib.request.urlopen(f"http://{tenants.server.metrics_target}/metrics") as page:
        text = page.read().decode()
    assert "loramux_requests" in text
    assert not re.search(r"lmx_", text)
    assert not any(key.id in text for key in tenants.good.values())
