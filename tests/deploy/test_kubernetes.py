"""Manifests fit together, and say what server and gateway take."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from loramux.v1 import generation_pb2
from tests.deploy.manifests import (
    COMPONENTS,
    KUBERNETES,
    Manifest,
    build,
    build_command,
    containers,
    patches,
    pods,
    values,
    written,
)
from tests.deploy.options import options_of
from tests.deploy.promql import exposed

BASE = written("base")
SERVICES = {"", generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name}
builds = pytest.mark.skipif(build_command() is None, reason="neither kubectl nor kustomize")


def ports_of(pod: Manifest) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", ())
    }


def check_arguments(container: Manifest) -> None:
    command, *arguments = container["args"]
    assert set(values(arguments)) <= options_of(command)


def check_probes(container: Manifest) -> None:
    numbers = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe: dict[str, Any] = container.get(name, {})
        if asked := probe.get("grpc"):
            assert asked["port"] == numbers["grpc"]
            assert asked.get("service", "") in SERVICES
        if asked := probe.get("exec"):
            program, command, *arguments = asked["command"]
            assert program == "loramux"
            given = values(arguments)
            assert set(given) <= options_of(command)
            assert given["--server"] == f"localhost:{numbers['grpc']}"
            assert given.get("--service", "") in SERVICES
        if asked := probe.get("httpGet"):
            assert (asked["path"], asked["port"]) == ("/health", "http")


def check_restricted(pod: Manifest) -> None:
    """Demand what the standard `restricted` of Pod Security does, and a root that is read-only."""
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"]["automountServiceAccountToken"] is False
    for container in pod["spec"]["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        writable = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/tmp" in writable


def check_end(pod: Manifest) -> None:
    """Demand that a pod is given more time to end than it asks for."""
    for container in pod["spec"]["containers"]:
        arguments = values(container.get("args", []))
        pause = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        needed = float(arguments.get("--drain-timeout", 0)) + (float(pause[1]) if pause else 0)
        assert pod["spec"]["terminationGracePeriodSeconds"] >= needed + 10


def check_volumes(manifest: Manifest) -> None:
    pod = manifest["spec"]["template"]["spec"]
    claims = manifest["spec"].get("volumeClaimTemplates", ())
    there = {volume["name"] for volume in pod["volumes"]}
    there |= {claim["metadata"]["name"] for claim in claims}
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= there


def lets_in(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a selector of pods takes one with `labels`."""
    wanted = {key: [value] for key, value in selector.get("matchLabels", {}).items()}
    for each in selector.get("matchExpressions", ()):
        assert each["operator"] == "In"
        wanted[each["key"]] = each["values"]
    return all(labels.get(key) in values for key, values in wanted.items())


def check_clients(manifests: list[Manifest]) -> None:
    """Demand that a pod with the label of clients and no other comes to servers and gateways."""
    policies = [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"]
    for component, port in (("server", "grpc"), ("gateway", "http")):
        rules = [
            rule
            for policy in policies
            if policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == component
            for rule in policy["ingress"]
            if {"port": port} in rule["ports"]
        ]
        senders = [
            each["podSelector"] for rule in rules for each in rule["from"] if "podSelector" in each
        ]
        client, stranger = {"loramux/client": "true"}, {"loramux/client": "false"}
        assert any(lets_in(each, client) for each in senders)
        assert not any(lets_in(each, stranger) for each in senders)
        # What kustomize writes over, it would narrow to pods of the base.
        assert not any("loramux/client" in each.get("matchLabels", {}) for each in senders)


def check_pause(pod: Manifest) -> None:
    """Demand that what a Service sends connections to waits until it is sent none."""
    for container in pod["spec"]["containers"]:
        if container.get("ports"):
            assert container["lifecycle"]["preStop"]["exec"]["command"][0] == "sleep"


def check_all(manifests: list[Manifest]) -> None:
    for container in containers(manifests):
        if container["name"] != "front":
            check_arguments(container)
        check_probes(container)
    for pod in pods(manifests):
        check_restricted(pod)
        check_end(pod)
        check_pause(pod)
    templates = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in pods(manifests)
    }
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        if kind in {"StatefulSet", "Deployment"}:
            check_volumes(manifest)
        if kind in {"Service", "NetworkPolicy", "PodMonitor"}:
            selector = spec["podSelector"] if kind == "NetworkPolicy" else spec["selector"]
            labels = selector.get("matchLabels", selector)
            ports = ports_of(templates[labels["app.kubernetes.io/component"]])
            asked = [port["targetPort"] for port in spec.get("ports", ())]
            asked += [port["port"] for rule in spec.get("ingress", ()) for port in rule["ports"]]
            asked += [each["port"] for each in spec.get("podMetricsEndpoints", ())]
            assert set(asked) <= set(ports), manifest["metadata"]["name"]
        if kind == "InferencePool":
            assert spec["targetPorts"] == [{"number": ports_of(templates["server"])["http"]}]


def test_the_base_fits_together() -> None:
    check_all(BASE)


def test_the_ports_are_those_that_are_listened_on() -> None:
    server, gateway = (values(container["args"]) for container in containers(BASE))
    pod, front = pods(BASE)
    assert ports_of(pod) == {
        "grpc": int(server["--listen"].rpartition(":")[2]),
        "metrics": int(server["--metrics"].rpartition(":")[2]),
    }
    assert ports_of(front) == {
        "http": int(gateway["--port"]),
        "metrics": int(gateway["--metrics"].rpartition(":")[2]),
    }
    # The headless service, whose name stands for each server's own address.
    (service,) = [
        each["spec"]
        for each in BASE
        if each["kind"] == "Service" and each["metadata"]["name"] == "loramux-servers"
    ]
    assert service["clusterIP"] == "None"
    (grpc,) = [port for port in service["ports"] if port["name"] == "grpc"]
    assert gateway["--target"] == f"dns:///loramux-servers:{grpc['port']}"


def test_whoever_has_the_label_of_clients_is_let_in() -> None:
    check_clients(BASE)


@builds
def test_the_base_as_it_is_built_lets_clients_in() -> None:
    check_clients(build(KUBERNETES / "base"))


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_adds_options_that_there_are(component: str) -> None:
    for kind, operation in patches(component):
        value: Any = operation.get("value")
        if operation["path"].endswith("/args/-"):
            command = "serve" if kind == "StatefulSet" else "gateway"
            assert value.partition("=")[0] in options_of(command)
        elif isinstance(value, dict) and value.get("args"):
            check_arguments(value)


@builds
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_fits_the_base(component: str, tmp_path: Path) -> None:
    # Inside of the folder, since kustomize takes no absolute paths.
    overlay = {"resources": ["base"], "components": [f"components/{component}"]}
    for each in ("base", "components"):
        (tmp_path / each).symlink_to(KUBERNETES / each)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    manifests = build(tmp_path)
    check_all(manifests)
    assert manifests != build(KUBERNETES / "base")


@builds
def test_the_example_can_be_built() -> None:
    manifests = build(KUBERNETES / "example")
    check_all(manifests)
    namespaces = {manifest["metadata"].get("namespace") for manifest in manifests}
    assert namespaces == {"loramux"}
    images = {container["image"] for container in containers(manifests)}
    assert images == {"registry.example.org/loramux:0.1"}


@builds
def test_the_example_scrapes_by_the_tls_that_its_servers_have() -> None:
    manifests = build(KUBERNETES / "example")
    (monitor,) = [
        each["spec"]
        for each in manifests
        if each["kind"] == "PodMonitor" and each["metadata"]["name"] == "loramux"
    ]
    (endpoint,) = monitor["podMetricsEndpoints"]
    server = next(each for each in containers(manifests) if each["name"] == "server")
    assert "--tls-cert" in values(server["args"])
    assert endpoint["scheme"] == "https"
    services = [each for each in manifests if each["kind"] == "Service"]
    assert endpoint["tlsConfig"]["serverName"] in {each["metadata"]["name"] for each in services}
    (pod,) = [each for each in manifests if each["kind"] == "StatefulSet"]
    secrets = [
        volume["secret"]["secretName"]
        for volume in pod["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    ]
    assert endpoint["tlsConfig"]["ca"]["secret"] == {"name": secrets[0], "key": "ca.crt"}
    assert not [
        port for each in services for port in each["spec"]["ports"] if "appProtocol" in port
    ]


@builds
def test_an_overlay_says_which_image_a_gpu_gets(tmp_path: Path) -> None:
    for each in ("base", "components"):
        (tmp_path / each).symlink_to(KUBERNETES / each)
    images = [
        {"name": name, "newName": f"registry.example.org/{name}", "newTag": "1"}
        for name in ("loramux", "loramux-cuda")
    ]
    overlay = {"resources": ["base"], "components": ["components/gpu"], "images": images}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    found = {each["name"]: each["image"] for each in containers(build(tmp_path))}
    assert found == {
        "server": "registry.example.org/loramux-cuda:1",
        "gateway": "registry.example.org/loramux:1",
    }


def test_the_autoscaler_asks_for_what_there_is() -> None:
    (scaler,) = [
        each for each in written("components/replicas") if each["kind"] == "HorizontalPodAutoscaler"
    ]
    for metric in scaler["spec"]["metrics"]:
        assert metric["pods"]["metric"]["name"] in exposed()


def test_routers_get_names_of_existing_metrics() -> None:
    path = KUBERNETES / "components" / "inference-pool" / "endpoint-picker.yaml"
    plugins = yaml.safe_load(path.read_text())["plugins"]
    (extractor,) = [each for each in plugins if each["type"] == "core-metrics-extractor"]
    (engine,) = extractor["parameters"]["engineConfigs"]
    asked = {name: metric for name, metric in engine.items() if name.endswith("Spec")}
    assert set(asked) == {"queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec", "loraSpec"}
    assert set(asked.values()) <= exposed().keys()
    assert exposed()[asked["loraSpec"]] == {
        "max_lora", "running_lora_adapters", "waiting_lora_adapters"
    }  # fmt: skip
    labels = [op["value"] for _, op in patches("inference-pool") if "engine-type" in op["path"]]
    assert labels == [engine["name"]]
