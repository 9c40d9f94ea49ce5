"""Write the generated code from the protos: the one way to do it.

Ours goes to client/loramux/v1. The protocol of others that the server speaks too goes to
server/loramux_server/inference and is no part of the client, so that a program may have ours and
theirs: two definitions of one message cannot be in one process.

Run `make protos`, or `python protos/generate.py [OUTPUT_ROOT]`.
"""

import shutil
import sys
from pathlib import Path

PROTOS = Path(__file__).resolve().parent


def generate(root: Path) -> None:
    """Compile every proto into `root`, with type stubs."""
    client, server = root / "client", root / "server" / "loramux_server"
    _compile(client, "loramux/v1/*.proto", ("python", "grpc_python", "mypy", "mypy_grpc"))
    _compile(server, "inference/*.proto", ("python", "mypy"))


def _compile(output: Path, protos: str, kinds: tuple[str, ...]) -> None:
    from grpc_tools import protoc

    output.mkdir(parents=True, exist_ok=True)
    # By path: the plugins are not on PATH unless the environment is activated.
    scripts = Path(sys.executable).parent
    plugins = []
    for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"):
        path = shutil.which(name, path=str(scripts)) or shutil.which(name)
        if path is None:
            raise SystemExit(f"{name} is missing; pip install mypy-protobuf")
        plugins.append(f"--plugin={name}={path}")
    well_known = Path(protoc.__file__).parent / "_proto"
    outputs = [
        f"--{kind}_out={'quiet:' if kind.startswith('mypy') else ''}{output}" for kind in kinds
    ]
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={well_known}",
        *outputs,
        *plugins,
        *(str(path) for path in sorted(PROTOS.glob(protos))),
    ]
    if protoc.main(arguments):
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent)
