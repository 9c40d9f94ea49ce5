"""The Kubernetes manifests, as they are written and as kustomize builds them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
Manifest = dict[str, Any]


def build_command() -> list[str] | None:
    """Return the command that builds a folder; None where there is none."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return ["kustomize", "build"] if shutil.which("kustomize") else None


def build(folder: Path) -> list[Manifest]:
    """Return the manifests that kustomize makes of `folder`."""
    command = build_command()
    assert command
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def written(folder: str) -> list[Manifest]:
    """Return the resources that a kustomization below KUBERNETES brings, without its changes."""
    place = KUBERNETES / folder
    names = yaml.safe_load((place / "kustomization.yaml").read_text()).get("resources", ())
    return [each for name in names for each in yaml.safe_load_all((place / name).read_text())]


def patches(component: str) -> Iterator[tuple[str, Manifest]]:
    """Yield (kind of its target, operation) of each change that `component` makes."""
    path = KUBERNETES / "components" / component / "kustomization.yaml"
    for patch in yaml.safe_load(path.read_text()).get("patches", ()):
        for operation in yaml.safe_load(patch["patch"]):
            yield patch["target"]["kind"], operation


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Yield the pod template of each workload."""
    for manifest in manifests:
        if manifest["kind"] in {"StatefulSet", "Deployment"}:
            yield manifest["spec"]["template"]


def containers(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Yield each container that runs our image."""
    for pod in pods(manifests):
        for container in pod["spec"]["containers"]:
            if "args" in container:
                yield container


def values(arguments: list[str]) -> dict[str, str]:
    """Return option -> value of `--option=value`, empty where there is no value."""
    parts = (argument.partition("=") for argument in arguments)
    return {name: value for name, _, value in parts}
