"""Write the generated code in client/loramux/v1 from the protos: the one way to do it.

Run `make protos`, or `python protos/generate.py [OUTPUT_ROOT]`.
"""

import shutil
import sys
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
CLIENT = PROTOS.parent / "client"


def generate(output_root: Path) -> None:
    """Compile every proto into `output_root`/loramux/v1, with type stubs."""
    from grpc_tools import protoc

    output_root.mkdir(parents=True, exist_ok=True)
    # By path: the plugins are not on PATH unless the environment is activated.
    scripts = Path(sys.executable).parent
    plugins = []
    for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"):
        path = shutil.which(name, path=str(scripts)) or shutil.which(name)
        if path is None:
            raise SystemExit(f"{name} is missing; pip install mypy-protobuf")
        plugins.append(f"--plugin={name}={path}")
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={well_known}",
        f"--python_out={output_root}",
        f"--grpc_python_out={output_root}",
        f"--mypy_out=quiet:{output_root}",
        f"--mypy_grpc_out=quiet:{output_root}",
        *plugins,
        *(str(path) for path in sorted(PROTOS.glob("loramux/v1/*.proto"))),
    ]
    if protoc.main(arguments):
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else CLIENT)
