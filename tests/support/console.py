"""A gateway with a console, in front of a real server with keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loramux import Client
from loramux_server.access.caller import Role
from tests.support.access import Keys
from tests.support.gateway import Answer, RunningGateway
from tests.support.server import RunningServer

API = "/console/api/"


@dataclass(frozen=True)
class Site:
    """The gateway, the server behind it, and a key for each role."""

    gateway: RunningGateway
    server: RunningServer
    keys: dict[Role, str]

    @property
    def url(self) -> str:
        return self.gateway.url.removesuffix("v1")

    def client(self, role: Role = Role.ADMIN) -> Client:
        return self.server.client(key=self.keys[role])

    def get(self, path: str, role: Role = Role.ADMIN) -> Answer:
        return self.gateway.get(API + path, authorization=f"Bearer {self.keys[role]}")

    def post(self, path: str, body: object, role: Role = Role.PUBLISHER) -> Answer:
        return self.gateway.post(API + path, body, authorization=f"Bearer {self.keys[role]}")

    def put(self, path: str, body: bytes, role: Role = Role.PUBLISHER) -> Answer:
        return self.gateway.put(API + path, body, authorization=f"Bearer {self.keys[role]}")


@contextmanager
def serving(folder: Path, base: Path, tenant: str, *arguments: str) -> Iterator[Site]:
    """Yield a site of `base`, whose keys are those of `tenant`."""
    keys = Keys(folder / "store")
    texts = {role: keys.make(tenant, role).text for role in Role}
    keys.close()
    # Longer than any test, so that what a gateway waits for in the end is seen.
    console = ("--console", "--no-retries", "--drain-timeout", "3600")
    with (
        RunningServer(folder, base, *arguments) as server,
        RunningGateway(folder, server.target, *console) as gateway,
    ):
        yield Site(gateway, server, texts)
