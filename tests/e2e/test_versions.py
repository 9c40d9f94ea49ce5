"""Versions, aliases and references, over the real socket."""

import hashlib
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux import AsyncClient, Client
from loramux.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from loramux_adapters import pack
from loramux_server.inference.open_inference_pb2 import ModelMetadataRequest
from tests.support.adapters import save_adapter
from tests.support.models import tiny_model
from tests.support.open_inference import asking, call, texts_of
from tests.support.server import RunningServer

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6, "ignore_eos": True}
NUM_RACERS = 64


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("packages")
    model = tiny_model("llama", vocab_size=259)
    paths = []
    for seed in range(3):
        source = save_adapter(
            model, folder / f"peft{seed}", seed=seed, r=4, target_modules=["q_proj", "v_proj"]
        )
        paths.append(folder / f"{seed}.safetensors")
        with paths[-1].open("wb") as output:
            pack(source, output)
    return paths


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, roomy_base: Path, tiny_adapters: Path
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with RunningServer(folder, roomy_base, "--adapters", str(tiny_adapters)) as server:
        yield server


@pytest.fixture
def client(server: RunningServer, packages: list[Path]) -> Iterator[Client]:
    """A client of a server on which `bot` has three versions."""
    with server.client() as client:
        for package in packages:
            client.adapters.upload("bot", package)
        yield client
    with server.client() as client:  # of what is there now: it may have been started again
        for adapter in client.adapters.list():
            if adapter.source == "upload":
                client.adapters.delete(adapter.reference.partition(":")[0])


def version_of(client: Client, reference: str, key: str = "") -> int:
    answer = client.generate("hi", adapter=reference, routing_key=key, max_tokens=1)
    assert answer.adapter is not None
    return answer.adapter.version


def newest(client: Client) -> int:
    return client.adapters.get("bot").version


def loramux(server: RunningServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loramux.cli", *arguments, "--server", server.target],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_each_version_answers_as_itself_and_says_so(client: Client) -> None:
    last = newest(client)
    answers = {}
    for version in range(last - 2, last + 1):
        found = client.adapters.get(f"bot:{version}")
        answer = client.generate("hello", adapter=f"public/bot:{version}", **GREEDY)
        assert answer.adapter is not None
        assert (answer.adapter.tenant, answer.adapter.name) == ("public", "bot")
        assert (answer.adapter.version, answer.adapter.digest) == (version, found.digest)
        by_digest = client.generate("hello", adapter=f"bot@{found.digest}", **GREEDY)
        assert by_digest.token_ids == answer.token_ids
        answers[version] = answer.token_ids
    assert len(set(answers.values())) == 3
    for reference in ("bot", "bot:latest"):
        assert client.generate("hello", adapter=reference, **GREEDY).token_ids == answers[last]


def test_what_a_reference_does_not_find_is_never_the_base(client: Client) -> None:
    digest = client.adapters.get("bot").digest
    for reference in ("bot:999", "bot:nothing", "team/bot", f"bot:{newest(client) - 1}@{digest}"):
        with pytest.raises(NotFoundError) as caught:
            client.generate("hello", adapter=reference)
        assert (caught.value.reason, caught.value.field) == ("ADAPTER_NOT_FOUND", "adapter")
    for reference in ("bot:", "bot:01", "a/b/c", "bot@sha256:1"):
        with pytest.raises(InvalidArgumentError, match="adapter: ") as invalid:
            client.generate("hello", adapter=reference)
        assert invalid.value.field == "adapter"


def test_a_tenant_has_names_of_its_own(client: Client, packages: list[Path]) -> None:
    mine = client.adapters.upload("team/bot", packages[0])
    assert (mine.tenant, mine.name, mine.version) == ("team", "bot", 1)
    assert version_of(client, "team/bot") == 1
    client.adapters.delete("team/bot")
    assert version_of(client, "bot") == newest(client)


def test_an_alias_moves_only_from_where_it_is_expected(client: Client) -> None:
    last = newest(client)
    assert client.adapters.set_alias("bot", "stable", version=last - 1, expected={}) == {
        last - 1: 1
    }
    assert version_of(client, "bot:stable") == last - 1
    with pytest.raises(AbortedError) as caught:
        client.adapters.set_alias("bot", "stable", version=last, expected=last - 2)
    assert (caught.value.reason, caught.value.field) == ("ALIAS_MOVED", "expected")
    client.adapters.set_alias("bot", "stable", version=last, expected=last - 1, by="ann")
    assert client.adapters.get(f"bot:{last}").aliases == ("stable",)
    assert client.adapters.roll_back("bot", "stable") == {last - 1: 1}
    moves = client.adapters.alias_moves("bot", "stable")
    assert [(move.before, move.after) for move in moves] == [
        ({last: 1}, {last - 1: 1}), ({last - 1: 1}, {last: 1}), ({}, {last - 1: 1}),
    ]  # fmt: skip
    assert (moves[1].moved_by, moves[0].moved_by) == ("ann", "ipv4:127.0.0.1")
    assert client.adapters.alias_moves("bot", "stable", limit=1) == moves[:1]
    with pytest.raises(FailedPreconditionError) as kept:
        client.adapters.delete(f"bot:{last - 1}")
    assert kept.value.reason == "VERSION_IN_USE"
    client.adapters.delete_alias("bot", "stable", expected=last - 1)
    with pytest.raises(NotFoundError):
        client.adapters.get("bot:stable")
    client.adapters.delete(f"bot:{last - 1}")
    assert f"bot:{last - 1}" not in [a.reference for a in client.adapters.list(all_versions=True)]


def test_a_split_is_sticky_by_key_and_gives_each_its_share(client: Client) -> None:
    last = newest(client)
    weights = {str(last - 1): 75, str(last): 25}
    client.adapters.set_alias("bot", "canary", weights=weights)
    assert client.adapters.aliases("bot") == {"canary": {last - 1: 75, last: 25}}
    keys = [f"user-{number}" for number in range(60)]
    chosen = {key: version_of(client, "bot:canary", key) for key in keys}
    assert all(version_of(client, "bot:canary", key) == chosen[key] for key in keys[:10])
    counts = Counter(chosen.values())
    assert set(counts) == {last - 1, last}
    assert 4 <= counts[last] <= 28  # the keys are fixed; 15 are expected
    # Who was with the canary stays with it as it grows.
    client.adapters.set_alias("bot", "canary", weights={last - 1: 10, last: 90})
    assert all(version_of(client, "bot:canary", k) == last for k in keys if chosen[k] == last)


def test_all_texts_of_a_model_whose_alias_is_split_get_one_version(
    server: RunningServer, client: Client
) -> None:
    versions = range(newest(client) - 2, newest(client) + 1)
    client.adapters.set_alias(
        "bot", "canary", weights=dict(zip(versions, (40, 30, 30), strict=True))
    )
    alone = {
        version: client.generate("hi", adapter=f"bot:{version}", **GREEDY).text
        for version in versions
    }
    assert len(set(alone.values())) == 3
    found = set()
    with grpc.insecure_channel(server.target) as channel:
        for key in map(str, range(12)):
            request = asking("bot", *["hi"] * 4, version="canary", parameters=GREEDY)
            request.parameters["routing_key"].string_param = key
            answer = call(channel, "ModelInfer", request)
            version = version_of(client, "bot:canary", key)
            assert answer.model_version == str(version)
            assert texts_of(answer) == ["hi" + alone[version]] * 4
            found.add(version)
        reported = call(
            channel, "ModelMetadata", ModelMetadataRequest(name="bot", version="canary")
        )
    assert len(found) > 1
    assert list(reported.versions) == list(map(str, versions))


def test_a_running_request_keeps_its_version_when_the_alias_moves(client: Client) -> None:
    last = newest(client)
    long: dict[str, Any] = {**GREEDY, "max_tokens": 300}
    client.adapters.set_alias("bot", "live", version=last - 1)
    alone = client.generate("hello", adapter="bot:live", **long)
    stream = client.stream("hello", adapter="bot:live", **long)
    first = next(stream)
    client.adapters.set_alias("bot", "live", version=last)
    assert version_of(client, "bot:live") == last
    tokens = first.token_ids + sum((chunk.token_ids for chunk in stream), ())
    assert first.adapter is not None
    assert first.adapter.version == last - 1
    assert tokens == alone.token_ids


def test_versions_aliases_and_numbers_survive_a_kill(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    last = newest(client)
    client.adapters.set_alias("bot", "stable", weights={last - 1: 95, last: 5})
    client.adapters.delete(f"bot:{last - 2}")
    before = client.adapters.list(all_versions=True)
    server.kill()
    server.start()
    with server.client() as again:
        after = again.adapters.list(all_versions=True)
        assert [a.reference for a in after] == [a.reference for a in before]
        assert [a.digest for a in after] == [a.digest for a in before]
        assert again.adapters.aliases("bot") == {"stable": {last - 1: 95, last: 5}}
        assert len(again.adapters.alias_moves("bot", "stable")) == 1
        again.adapters.delete("bot")
        assert again.adapters.upload("bot", packages[0]).version == last + 1
        again.adapters.delete("bot")


async def test_the_asynchronous_client_does_the_same(server: RunningServer, client: Client) -> None:
    last = newest(client)
    async with AsyncClient(server.target) as aio:
        assert await aio.adapters.set_alias("bot", "stable", version=last - 1) == {last - 1: 1}
        await aio.adapters.set_alias("bot", "stable", version=last, expected=last - 1)
        assert await aio.adapters.aliases("bot") == {"stable": {last: 1}}
        answer = await aio.generate("hi", adapter="bot:stable", routing_key="me", max_tokens=1)
        assert answer.adapter is not None
        assert answer.adapter.version == last
        assert await aio.adapters.roll_back("bot", "stable") == {last - 1: 1}
        assert len(await aio.adapters.alias_moves("bot", "stable")) == 3
        assert await aio.adapters.list() == client.adapters.list()
        assert await aio.adapters.list(all_versions=True) == client.adapters.list(all_versions=True)
        await aio.adapters.delete_alias("bot", "stable")
        assert (await aio.adapters.get("bot")).aliases == ()


def test_the_command_line_moves_aliases(server: RunningServer, client: Client) -> None:
    last = newest(client)
    done = loramux(server, "alias", "set", "bot", "stable", f"{last - 1}", "--expected", "none")
    assert (done.returncode, done.stdout) == (0, f"bot:stable {last - 1}\n")
    done = loramux(server, "alias", "set", "bot", "stable", f"{last - 1}=95", f"{last}=5")
    assert done.stdout == f"bot:stable {last - 1}=95 {last}=5\n"
    done = loramux(server, "alias", "set", "bot", "stable", f"{last}", "--expected", f"{last}")
    assert done.returncode == 1
    assert done.stderr.startswith("loramux: alias 'stable' of 'bot' points to {")
    assert loramux(server, "alias", "ls", "bot").stdout == f"stable {last - 1}=95 {last}=5\n"
    assert (
        loramux(server, "alias", "rollback", "bot", "stable").stdout == f"bot:stable {last - 1}\n"
    )
    moves = json.loads(loramux(server, "alias", "log", "bot", "stable", "--json").stdout)
    assert len(moves) == 3
    listed = json.loads(loramux(server, "ls", "--all-versions", "--json").stdout)
    assert next(a["version"] for a in listed if a["name"] == "bot") == last
    assert loramux(server, "alias", "rm", "bot", "stable").returncode == 0
    assert client.adapters.aliases("bot") == {}


# Many at once


def race(server: RunningServer, call: Callable[[Client, int], object]) -> list[int]:
    """Let clients with a connection each call at once, and return those who were not refused."""
    begin = threading.Barrier(NUM_RACERS)

    def run(number: int) -> bool:
        with server.client() as client:
            client.info()
            begin.wait(timeout=60)
            try:
                call(client, number)
            except (AbortedError, AlreadyExistsError):
                return False
            return True

    with ThreadPoolExecutor(NUM_RACERS) as pool:
        return [number for number, won in enumerate(pool.map(run, range(NUM_RACERS))) if won]


def test_of_64_clients_who_move_an_alias_one_does(server: RunningServer, client: Client) -> None:
    last = newest(client)
    client.adapters.set_alias("bot", "raced", version=last - 2)

    def move(racer: Client, number: int) -> None:
        version = last - number % 2
        racer.adapters.set_alias(
            "bot", "raced", version=version, expected=last - 2, by=f"racer {number}"
        )

    (winner,) = race(server, move)
    assert client.adapters.aliases("bot")["raced"] == {last - winner % 2: 1}
    moves = client.adapters.alias_moves("bot", "raced")
    assert [move.moved_by for move in moves][:1] == [f"racer {winner}"]
    assert len(moves) == 2
    client.adapters.delete_alias("bot", "raced")


def test_of_64_clients_who_want_a_new_name_with_other_content_one_gets_it(
    server: RunningServer, client: Client, packages: list[Path]
) -> None:
    def upload(racer: Client, number: int) -> None:
        racer.adapters.upload("wanted", packages[number % 3], must_not_exist=True)

    winners = race(server, upload)
    # Who brings the very same content as the first is no rival of it.
    assert len({number % 3 for number in winners}) == 1
    (made,) = client.adapters.list(all_versions=True, name_prefix="wanted")
    digest = f"sha256:{hashlib.sha256(packages[winners[0] % 3].read_bytes()).hexdigest()}"
    assert (made.version, made.digest) == (1, digest)


def test_streams_go_on_unchanged_while_a_version_is_published(
    client: Client, packages: list[Path]
) -> None:
    long: dict[str, Any] = {**GREEDY, "max_tokens": 200}
    client.adapters.upload("news", packages[0])
    alone = client.generate("hello", adapter="news", **long).token_ids
    streams = [client.stream("hello", adapter="news", **long) for _ in range(4)]
    tokens = [next(stream).token_ids for stream in streams]
    made = client.adapters.upload("news", packages[1])
    assert made.version == 2
    new = client.generate("hello", adapter="news", **long)
    assert new.adapter is not None
    assert (new.adapter.version, new.token_ids == alone) == (2, False)
    for number, stream in enumerate(streams):
        for chunk in stream:
            tokens[number] += chunk.token_ids
    assert tokens == [alone] * 4
    # And it is what it is alone, too: nothing of the old version was found in the cache.
    client.adapters.upload("apart", packages[1])
    assert client.generate("hello", adapter="apart", **long).token_ids == new.token_ids
