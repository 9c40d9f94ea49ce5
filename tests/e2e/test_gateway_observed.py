"""What operators see of a gateway: its metrics, and its log of requests."""

import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux.gateway.observe.endpoint import metrics_port
from loramux_server.access.caller import Role
from tests.support.access import Keys
from tests.support.certificates import Authority
from tests.support.fake_server import DIES, FakeServer
from tests.support.gateway import RunningGateway
from tests.support.polling import eventually

TEXT = "/v1/completions"
SECRET = "a-secret-of-the-caller"


@dataclass(frozen=True)
class Site:
    """A gateway with metrics and a log, and a key of its server."""

    gateway: RunningGateway
    key: str

    def post(self, name: str = "", /, **body: object) -> Any:
        body = {"model": "fake", "prompt": [1, 2], "max_tokens": 3} | body
        headers = {"authorization": f"Bearer {self.key}"} | ({"x_request_id": name} if name else {})
        return self.gateway.post(TEXT, body, **headers)

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(self.gateway.metrics_url, timeout=10) as page:
            lines = page.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.gateway.log.read_text().splitlines()]

    def line_of(self, name: str) -> dict[str, Any]:
        """Return the line of the request with that id, once it is there."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = [each for each in self.logged() if each.get("request_id") == name]
            return bool(found)

        assert eventually(is_there)
        (line,) = found
        return line


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    keys = Keys(folder / "server" / "store")
    key = keys.make("acme", Role.USER).text
    keys.close()
    with (
        FakeServer(folder / "server") as server,
        RunningGateway(
            folder, server.target, "--no-retries", "--metrics", "127.0.0.1:0",
            "--log-format", "json", "--console",
        ) as gateway,
    ):  # fmt: skip
        yield Site(gateway, key)


def count(metrics: dict[str, float], name: str, **labels: str) -> float:
    reported = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return metrics.get(f"{name}{{{reported}}}" if reported else name, 0)


def test_requests_are_counted_by_template_method_and_status(site: Site) -> None:
    before = site.metrics()
    assert site.post().status == 200
    assert site.post(key=1).status == 400
    assert site.post(stream=True).status == 200
    assert site.gateway.get(f"/v1/models/{SECRET}").status == 401
    assert site.gateway.get(f"/{SECRET}?key={SECRET}").status == 404
    assert site.gateway.get("/console/api/aliases?name=x").status == 401
    assert site.gateway.get("/health").status == 200
    metrics = site.metrics()

    def grown(name: str, **labels: str) -> float:
        return count(metrics, name, **labels) - count(before, name, **labels)

    for route, method, status, expected in (
        (TEXT, "POST", "200", 2),
        (TEXT, "POST", "400", 1),
        ("/v1/models/{id:path}", "GET", "401", 1),
        ("unmatched", "GET", "404", 1),
        ("/console/api/aliases", "GET", "401", 1),
        ("/health", "GET", "200", 1),
    ):
        labels = {"route": route, "method": method, "status": status}
        assert grown("loramux_gateway_requests_total", **labels) == expected, labels
    assert grown("loramux_gateway_request_seconds_count", route=TEXT) == 3
    assert grown("loramux_gateway_time_to_first_byte_seconds_count", route=TEXT) == 1
    for method, expected in (("Generate", 1), ("StreamGenerate", 1)):
        labels = {"method": f"loramux.v1.GenerationService/{method}", "status": "OK"}
        assert grown("loramux_gateway_upstream_calls_total", **labels) == expected
    assert count(metrics, "loramux_gateway_requests_in_progress") == 0
    assert eventually(lambda: count(site.metrics(), "loramux_gateway_loop_lag_seconds_count") > 1)
    assert not any(SECRET in name for name in metrics)


def test_what_fails_upstream_is_counted_by_its_status(site: Site) -> None:
    before = site.metrics()
    found = site.post(stream=True, prompt=[DIES], max_tokens=50)
    assert found.status in (200, 503)
    metrics = site.metrics()
    name = "loramux_gateway_upstream_calls_total"
    failed = sum(
        value - before.get(each, 0)
        for each, value in metrics.items()
        if each.startswith(name) and "StreamGenerate" in each and 'status="OK"' not in each
    )
    assert failed == 1


def test_who_leaves_is_seen(site: Site) -> None:
    connection = site.gateway.connect()
    body = json.dumps({"model": "fake", "prompt": [1], "max_tokens": 4000, "stream": True})
    headers = {
        "content-type": "application/json", "authorization": f"Bearer {site.key}",
        "x-request-id": "leaving",
    }  # fmt: skip
    assert eventually(lambda: site.post(prompt=[1]).status == 200)  # the engine is back
    connection.request("POST", TEXT, body, headers)
    assert connection.getresponse().read(1)
    assert count(site.metrics(), "loramux_gateway_requests_in_progress") == 1
    assert count(site.metrics(), "loramux_gateway_connections") == 1
    connection.close()
    line = site.line_of("leaving")
    assert line["status"] == 200
    assert line["incomplete"] is True
    assert count(site.metrics(), "loramux_gateway_requests_in_progress") == 0


def test_what_is_no_request_is_counted_too(site: Site) -> None:
    assert site.gateway.get("/", x="y" * (70 << 10)).status == 431
    assert count(site.metrics(), "loramux_gateway_requests_rejected_total", status="431") == 1


def test_a_request_is_one_line_without_what_is_secret(site: Site) -> None:
    assert site.post("line-1", prompt=SECRET).status == 400  # the fake engine reads no text
    assert site.post("line-2", stream=True).status == 200
    assert site.gateway.get(f"/{SECRET}?{SECRET}", x_request_id="line-3").status == 404
    site.gateway.get("/health", x_request_id="healthy")
    refused, streamed, lost = (site.line_of(f"line-{number}") for number in (1, 2, 3))
    assert (refused["method"], refused["route"], refused["status"]) == ("POST", TEXT, 400)
    assert refused["request_bytes"] > len(SECRET)
    assert 0 < streamed["first_byte_seconds"] <= streamed["seconds"] < 60
    assert streamed["response_bytes"] > 100
    assert "incomplete" not in streamed
    assert (lost["route"], lost["process"], lost["level"]) == ("unmatched", "gateway", "info")
    reported = site.gateway.log.read_text()
    assert SECRET not in reported
    assert site.key not in reported
    assert "acme" not in reported
    assert "healthy" not in reported


def test_the_log_as_text_says_what_is_wrong_with_health(tmp_path: Path) -> None:
    with RunningGateway(tmp_path, "127.0.0.1:1", "--no-retries", "--log-format", "text") as gateway:
        assert gateway.get("/health", x_request_id="a status=200").status == 503
        assert eventually(lambda: "route" in gateway.log.read_text())
        (line,) = gateway.log.read_text().splitlines()
    assert re.fullmatch(
        r'\S+ \S+ gateway INFO request_id="a status=200" method="GET" route="/health" status=503 '
        r"seconds=[\d.]+ request_bytes=0 response_bytes=\d+",
        line,
    )


def test_metrics_that_other_machines_can_read_want_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    pair = authority.issue("gateway")
    with RunningGateway(
        tmp_path, "127.0.0.1:1", "--metrics", "0.0.0.0:0",
        "--tls-cert", str(pair[0]), "--tls-key", str(pair[1]),
        "--metrics-client-ca", str(authority.path), authority=authority.path,
    ) as gateway:  # fmt: skip
        url = gateway.metrics_url.replace("0.0.0.0", "127.0.0.1")
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=authority.path)
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            urllib.request.urlopen(url, context=context, timeout=10)
        context.load_cert_chain(*authority.issue("prometheus"))
        with urllib.request.urlopen(url, context=context, timeout=10) as page:
            assert b"loramux_gateway_connections" in page.read()


def test_where_metrics_may_be() -> None:
    pair = (Path("cert"), Path("key"))
    assert metrics_port("localhost:0", pair, None, insecure=False).pair is None
    assert metrics_port("[::1]:9401", None, None, insecure=False).port == 9401
    assert metrics_port("0.0.0.0:9401", None, None, insecure=True).pair is None
    assert metrics_port("0.0.0.0:9401", pair, Path("ca"), insecure=False).pair == pair
    with pytest.raises(FailedPreconditionError, match="other machines can reach this address"):
        metrics_port("0.0.0.0:9401", pair, None, insecure=False)
    with pytest.raises(InvalidArgumentError, match="--metrics 9401: expected HOST:PORT"):
        metrics_port("9401", None, None, insecure=False)
    with pytest.raises(InvalidArgumentError, match="--metrics-client-ca requires --tls-cert"):
        metrics_port("0.0.0.0:9401", None, Path("ca"), insecure=True)
