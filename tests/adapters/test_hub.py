"""Adapters of the hub, from a server that answers as it does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.command_line import Loramux

COMMIT = "c" * 40
BESIDE = {"tokenizer.json", "head_config.json", "model_head.safetensors"}
"""Files of tokens and heads, which packing reads of some adapters."""


class Hub(ThreadingHTTPServer):
    """Serves one repository, `org/poet`."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.fetched: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        place, _, name = path.rpartition("/")
        if path.startswith("/api/models/org/poet"):
            self.reply(json.dumps(self.described(path)).encode(), "application/json")
        elif place == f"/org/poet/resolve/{COMMIT}" and name in self.server.files:
            self.server.fetched.append(name)
            self.reply(self.server.files[name], "application/octet-stream")
        else:
            self.send_response(404)
            if not path.startswith("/org/poet/"):
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def described(self, path: str) -> object:
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, content in self.server.files.items()
        ]
        if "/tree/" in path:
            return entries
        siblings = [{"rfilename": name} for name in self.server.files]
        return {"id": "org/poet", "sha": COMMIT, "siblings": siblings, "tags": []}

    def reply(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(poet: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in poet.iterdir()}
    files |= {"chat_template.jinja": b"{{ 1 }}", "adapter_model.bin": b"\x80", "evil.py": b"1 / 0"}
    files |= dict.fromkeys(BESIDE, b"{}")
    hub = Hub(files)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


def pack(hub: Hub, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "30",
        "PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "loramux.cli", "pack", *arguments, "--json"],
        capture_output=True, text=True, env=environment, cwd=folder,
    )  # fmt: skip


def test_an_adapter_of_the_hub_is_packed_and_nothing_else_of_it_fetched(
    hub: Hub, loramux: Loramux, tmp_path: Path
) -> None:
    done = pack(hub, tmp_path, "hf://org/poet")
    assert done.returncode == 0, done.stderr
    wanted = {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"}
    assert set(hub.fetched) == wanted | BESIDE
    (tmp_path / "poet" / "chat_template.jinja").write_text("{{ 1 }}")
    assert loramux("pack", "poet", "-o", "local").code == 0
    found = json.loads(done.stdout)
    assert found["path"] == "poet.safetensors"
    assert (tmp_path / "poet.safetensors").read_bytes() == Path("local").read_bytes()


def test_what_is_not_there_is_one_line(hub: Hub, tmp_path: Path) -> None:
    done = pack(hub, tmp_path, "hf://org/missing")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "hf://org/missing: no such repository" in done.stderr


@pytest.mark.parametrize("address", ["hf://poet", "hf://org/../poet", "hf://", "hf://a/b?c"])
def test_what_is_no_address_is_one_line(loramux: Loramux, address: str) -> None:
    done = loramux("pack", address)
    wanted = f"loramux: {address!r} is not a Hub address; expected hf://ORG/NAME[@REVISION]\n"
    assert (done.code, done.output, done.errors) == (1, "", wanted)


def test_a_repository_of_pickles_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["adapter_model.safetensors"]
    done = pack(hub, tmp_path, "hf://org/poet")
    assert done.returncode == 1
    assert done.stderr == (
        "loramux: hf://org/poet has no adapter_model.safetensors; pickles (.bin) are not fetched: "
        "`hf download org/poet --local-dir DIR`, then `loramux convert --from-bin DIR -o FILE`\n"
    )
    assert "adapter_model.bin" not in hub.fetched
