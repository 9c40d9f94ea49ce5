"""A server with keys whose log, audit log and traces are kept, for who looks at what they tell."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramux_server.access.caller import Role
from loramux_server.access.key import Key
from tests.support.access import Keys
from tests.support.collector import Collector
from tests.support.server import RunningServer

TENANT, OTHER = "acme", "umbrella"
SECRET = "canary-of-the-files"
"""What is in files that the server reads and nobody may be told."""
STORE_SECRET = "canary-of-the-cloud"
"""What the server is trusted with for its sources."""


@dataclass(frozen=True)
class Observed:
    """A running server, and where what it tells ends up."""

    server: RunningServer
    keys: dict[str, Key]
    """Each of TENANT, by role, and that of another tenant, under its name."""
    collector: Collector
    audit: Path

    def calls(self) -> list[dict[str, Any]]:
        """Return the lines that the log has of calls."""
        lines = [
            json.loads(line)
            for line in self.server.log.read_text().splitlines()
            if line.startswith("{")
        ]
        return [line for line in lines if line["logger"] == "loramux.calls"]


def write_damaged_entry(adapters: Path) -> None:
    """Put something into a directory of adapters that is none, with SECRET in it."""
    folder = adapters / "damaged"
    folder.mkdir()
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": SECRET}))
    (folder / "adapter_model.safetensors").write_bytes(SECRET.encode())


@contextmanager
def observed_server(folder: Path, model: Path, *arguments: str) -> Iterator[Observed]:
    """Serve `model`; spans are sent at once."""
    making = Keys(folder / "store")
    # Before it starts: a server without keys takes anybody for its administrator.
    keys: dict[str, Key] = {role: making.make(TENANT, role) for role in Role}
    keys |= {OTHER: making.make(OTHER, Role.PUBLISHER)}
    keys |= {"revoked": making.revoked(TENANT, Role.USER)}
    making.close()
    audit = folder / "audit.jsonl"
    with Collector() as collector:
        server = RunningServer(
            folder, model, "--log-format", "json", "--audit-log", str(audit),
            "--tracing-endpoint", collector.endpoint, *arguments,
            "--hub-allow", "acme/*", "--object-allow", "s3://acme",
            OTEL_BSP_SCHEDULE_DELAY="50", HF_TOKEN=STORE_SECRET,
            # Nobody listens there.
            AWS_ENDPOINT="http://127.0.0.1:1", AWS_ALLOW_HTTP="true", AWS_REGION="eu",
            AWS_ACCESS_KEY_ID=STORE_SECRET, AWS_SECRET_ACCESS_KEY=STORE_SECRET,
        )  # fmt: skip
        with server:
            yield Observed(server, keys, collector, audit)
