"""Kills a real server while packages come and tokens go, and looks at what the next one has."""

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from loramux import Client
from loramux.errors import LoramuxError
from loramux_adapters import pack
from tests.crash.registry_model import RegistryModel
from tests.support.adapters import save_adapter
from tests.support.models import save_model, tiny_model
from tests.support.server import RunningServer

NUM_PACKAGES = 6
NUM_PUBLISHERS = 3
NUM_READERS = 4
TARGETS: dict[str, str | list[str]] = {
    "llama": "all-linear", "qwen3-next": ["in_proj_qkvz", "out_proj", "down_proj", "o_proj"],
}  # fmt: skip
"""Base -> what adapters change. PEFT takes layers called as those of experts for these, too."""
MIN_CALLS = 20
"""Answered calls before a kill; one that comes earlier would prove nothing."""


class Publisher:
    """A caller who uploads, deletes and moves an alias under a name of its own."""

    def __init__(self, name: str, packages: list[Path], seed: int) -> None:
        self.name = name
        self.model = RegistryModel()
        self.under_way: RegistryModel | None = None
        """What becomes of it if the call comes through that is not answered yet."""
        self._packages = packages
        self._chance = random.Random(seed)

    def call(self, client: Client) -> None:
        """Make one random call."""
        versions = self.model.versions.get(self.name)
        free = [v for v in versions or () if not self.model.is_aliased(self.name, v)]
        choice = self._chance.random()
        if versions and choice < 0.2:
            version = self._chance.choice(list(versions))
            with self._change(lambda model: model.set_alias(self.name, "stable", {version: 1})):
                client.adapters.set_alias(self.name, "stable", version=version)
        elif free and choice < 0.4:
            with self._change(lambda model: model.delete(self.name, free[0])):
                client.adapters.delete(f"{self.name}:{free[0]}")
        else:
            number = self._chance.randrange(len(self._packages))
            with self._change(lambda model: model.upload(self.name, number)):
                made = client.adapters.upload(self.name, self._packages[number], timeout=30)
                assert self.under_way is not None
                assert made.version == self.under_way.newest(self.name)

    @contextlib.contextmanager
    def _change(self, change: Callable[[RegistryModel], object]) -> Iterator[None]:
        self.under_way = self.model.copy()
        change(self.under_way)
        yield
        self.model, self.under_way = self.under_way, None

    def settle(self, client: Client, digests: list[str]) -> None:
        """Demand that the server has what was answered, or that with the call under way."""
        found: dict[int, int] = {}
        for adapter in client.adapters.list(all_versions=True, name_prefix=self.name):
            found[adapter.version] = digests.index(adapter.digest)
        aliases = client.adapters.aliases(self.name) if found else {}
        for model in filter(None, (self.under_way, self.model)):
            expected = {a: w for (_, a), w in model.aliases.items()}
            if (found, aliases) == (model.versions.get(self.name, {}), expected):
                self.model, self.under_way = model, None
                return
        raise AssertionError(f"{self.name}: found {found} {aliases}, told {self.model.versions}")


class Kills:
    """A server that is killed again and again."""

    def __init__(self, folder: Path, seed: int, base: str = "llama") -> None:
        """Prepare, in `folder`, for a tiny model of the architecture `base`."""
        self._folder = folder
        self._chance = random.Random(seed)
        self.packages = list(_packages(folder, base))
        self.digests = [
            f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in self.packages
        ]
        model = save_model(folder / "base", base)
        self.server = RunningServer(folder / "server", model)
        self._publishers = [
            Publisher(f"own-{number}", self.packages, seed + number)
            for number in range(NUM_PUBLISHERS)
        ]
        self.num_calls = 0
        self.start_seconds: list[float] = []

    def begin(self) -> None:
        """Start the server with an adapter that readers use."""
        self.server.start()
        with self.server.client() as client:
            client.adapters.upload("read", self.packages[0])

    def kill_once(self) -> None:
        """Kill under load, start again, and demand that everything is right."""
        stop = threading.Event()
        calls: list[str] = []
        threads = [
            threading.Thread(target=self._repeat, args=(publisher.call, stop, calls))
            for publisher in self._publishers
        ]
        threads += [
            threading.Thread(target=self._repeat, args=(_generate, stop, calls))
            for _ in range(NUM_READERS)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(calls) < MIN_CALLS and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(self._chance.random())
        self.server.kill()
        stop.set()
        for thread in threads:
            thread.join()
        assert len(calls) >= MIN_CALLS, f"only {len(calls)} calls were answered before the kill"
        self.num_calls += len(calls)
        begun = time.monotonic()
        self.server.start()
        self.start_seconds.append(time.monotonic() - begun)
        self._check()

    def _repeat(
        self, call: Callable[[Client], None], stop: threading.Event, calls: list[str]
    ) -> None:
        with closing(self.server.client(timeout=60)) as client:
            while not stop.is_set():
                try:
                    call(client)
                except LoramuxError:
                    return
                calls.append("answered")

    def _check(self) -> None:
        with self.server.client() as client:
            for publisher in self._publishers:
                publisher.settle(client, self.digests)
            listed = client.adapters.list(all_versions=True)
            for adapter in listed:
                path = self._folder / "downloaded"
                client.adapters.download(adapter.reference, path)
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                assert f"sha256:{content}" == adapter.digest
                path.unlink()
            store = self._folder / "server" / "store"
            blobs = {f"sha256:{path.name}" for path in (store / "blobs").glob("*/*")}
            assert blobs == {adapter.digest for adapter in listed}
            assert {path.suffix for path in (store / "staging").iterdir()} <= {".upload"}
            _generate(client)


def _generate(client: Client) -> None:
    answer = client.generate("hello", adapter="read", max_tokens=8)
    assert answer.adapter is not None


def _packages(folder: Path, base: str) -> Iterator[Path]:
    model = tiny_model(base, vocab_size=259)
    for number in range(NUM_PACKAGES):
        source = save_adapter(
            model, folder / f"peft{number}", seed=number, r=64, target_modules=TARGETS[base]
        )
        path = folder / f"{number}.safetensors"
        with path.open("wb") as output:
            pack(source, output)
        yield path
