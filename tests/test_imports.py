"""What may import what, and what the client promises."""

import ast
import inspect
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import grpc
import pytest

import loramux
import loramux.errors
import loramux_adapters
from loramux.errors import LoramuxError

ROOT = Path(__file__).resolve().parent.parent

ONLY = """
import json
import sys


class Block:
    def find_spec(self, name, path=None, target=None):
        if {name, name.partition(".")[0]} & BLOCKED:
            raise ImportError(f"{name} is not part of a bare installation")


BLOCKED = set(BLOCKED_NAMES)
sys.meta_path.insert(0, Block())
"""


def in_a_bare_installation(program: str, *more: str) -> str:
    """Return what `program` prints where only grpcio, protobuf and our code can be imported."""
    installed = {
        path.name.partition(".")[0]
        for place in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
        for path in Path(place).iterdir()
    }
    needed = {"grpc", "google", "typing_extensions", "loramux", "loramux_adapters"}
    blocked = installed - needed | {"google.api", "google.rpc", "loramux_server", *more}
    setup = ONLY.replace("BLOCKED_NAMES", repr(sorted(blocked)))
    done = subprocess.run(
        [sys.executable, "-c", setup + program], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client_needs_only_grpcio_and_protobuf() -> None:
    output = in_a_bare_installation("""
from loramux import AsyncClient, Client
with Client("localhost:1") as client:
    print(type(client).__name__, AsyncClient.__name__)
print(*sys.modules)
""")
    first, second = output.splitlines()
    assert first == "Client AsyncClient"
    assert {"torch", "numpy", "rich", "typer", "safetensors"} & set(second.split()) == set()


def test_the_client_packs_and_reports_mistakes_without_more(tmp_path: Path) -> None:
    output = in_a_bare_installation(f"""
from loramux import Client
from loramux.errors import InvalidArgumentError
with Client("localhost:1") as client:
    try:
        client.adapters.upload("poet", {str(tmp_path)!r})
    except InvalidArgumentError as error:
        print(error.reason)
""")
    assert output == "INVALID_ADAPTER_CONFIG\n"


def test_adapters_need_nothing_but_the_standard_library() -> None:
    output = in_a_bare_installation(
        """
import loramux_adapters
import loramux_adapters.package
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
""",
        "grpc",
        "google",
        "loramux",
    )
    ours = {name for name in json.loads(output) if name.startswith("loramux")}
    assert ours == {"loramux_adapters"}


def test_the_command_line_says_what_it_lacks() -> None:
    output = in_a_bare_installation("from loramux.cli import main\nprint(main())")
    assert output == "1\n"


def imported_by(folder: Path, but: tuple[str, ...] = ()) -> set[str]:
    """Return the top-level names that the files below `folder` import, wherever they do.

    Files that are called as one of `but`, or are in a folder that is, do not count.
    """
    names = set()
    for path in folder.rglob("*.py"):
        if not set(but).isdisjoint(path.relative_to(folder).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                names.add((node.module or "").partition(".")[0])
    return names


SERVER = ROOT / "server" / "loramux_server"
ENGINE = {"engine", "kernels", "lora", "models"}
"""Folders of the engine process."""
SHARED = {
    "confinement", "forms", "hashes", "images", "memory_tuning", "observe", "ranking", "text",
    "wire",
}  # fmt: skip
"""What both processes have, without torch."""


def parts_imported_by(path: Path) -> set[str]:
    """Return the folders and modules of the server that a file of it imports."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = {node.module or "" for node in tree if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[1] for name in modules if name.startswith("loramux_server.")}


def test_frontend_and_engine_meet_in_what_they_say_to_each_other() -> None:
    for path in SERVER.rglob("*.py"):
        of, found = path.relative_to(SERVER).parts[0], parts_imported_by(path)
        if of in ENGINE:
            assert found <= ENGINE | SHARED, path
        else:  # what an adapter takes of memory is asked before it is loaded, too
            assert found.isdisjoint(ENGINE - {"lora"}), path


def test_adapters_import_the_standard_library_and_themselves() -> None:
    found = imported_by(ROOT / "adapters", but=("weights", "train", "signing.py"))
    assert found - set(sys.stdlib_module_names) == {"loramux_adapters"}


def test_signing_needs_cryptography_and_no_more() -> None:
    found = imported_by(ROOT / "adapters", but=("weights", "train")) - set(sys.stdlib_module_names)
    assert found == {"loramux_adapters", "cryptography"}


def test_what_looks_into_weights_needs_numpy_and_no_more() -> None:
    folder = ROOT / "adapters" / "loramux_adapters" / "weights"
    # Pickles of torch are read with torch, where somebody asks for that.
    found = imported_by(folder, but=("pickled.py", "unpickling.py"))
    assert found - set(sys.stdlib_module_names) == {"loramux_adapters", "numpy"}
    assert {"torch", "safetensors"} <= imported_by(folder)


def test_what_trains_needs_peft_and_transformers_and_no_more() -> None:
    found = imported_by(ROOT / "adapters" / "loramux_adapters" / "train")
    needed = {"loramux_adapters", "peft", "torch", "transformers"}
    assert found - set(sys.stdlib_module_names) == needed


def test_the_client_never_imports_the_server() -> None:
    found = imported_by(ROOT / "client")
    assert "loramux_adapters" in found
    assert "loramux_server" not in found


def test_the_client_leaves_the_messages_of_others_to_others() -> None:
    """Two definitions of a message cannot be in one process: Triton's client brings its own."""
    program = """
import importlib
import pkgutil
import loramux
from google.protobuf import descriptor_pool
for found in pkgutil.walk_packages(loramux.__path__, "loramux."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
pool = descriptor_pool.Default()
print(pool.FindMessageTypeByName("loramux.v1.GenerateRequest").name)
try:
    pool.FindMessageTypeByName("inference.ModelInferRequest")
except KeyError:
    print("not known")
"""
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split("\n") == ["GenerateRequest", "not known", ""]


def test_the_gateway_needs_what_its_extra_brings_and_no_more() -> None:
    found = imported_by(ROOT / "client" / "loramux" / "gateway") - set(sys.stdlib_module_names)
    assert found == {
        "grpc", "grpc_health", "loramux", "msgspec", "prometheus_client", "starlette", "uvicorn"
    }  # fmt: skip


def test_one_folder_of_the_client_has_to_do_with_http() -> None:
    found = imported_by(ROOT / "client", but=("gateway", "gateway.py"))
    assert found.isdisjoint({"msgspec", "starlette", "uvicorn"})


@pytest.mark.parametrize("package", [loramux, loramux_adapters])
def test_what_a_package_names_is_all_that_it_shows(package: ModuleType) -> None:
    for name in package.__all__:  # what is loaded when it is asked for, too
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018
    shown = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert shown == {name for name in package.__all__ if not name.startswith("_")}
    assert package.__all__ == sorted(package.__all__)


def test_the_public_surface_of_the_client_is_this() -> None:
    assert loramux.__all__ == [
        "Adapter",
        "AdapterIdentity",
        "AsyncClient",
        "Chunk",
        "Classification",
        "Client",
        "Completion",
        "Embedding",
        "FinishReason",
        "Generation",
        "Image",
        "LoramuxError",
        "Message",
        "Mix",
        "QuestionAnswering",
        "RequestOptions",
        "SamplingOptions",
        "ServerInfo",
        "Tokens",
        "ToolCall",
        "Usage",
        "__version__",
    ]


def errors() -> dict[str, type[LoramuxError]]:
    """Return the error classes of `loramux.errors` below the root."""
    return {
        name: value
        for name, value in vars(loramux.errors).items()
        if inspect.isclass(value) and issubclass(value, LoramuxError) and value is not LoramuxError
    }


def test_every_error_is_named_in_all() -> None:
    assert sorted([*errors(), "LoramuxError"]) == loramux.errors.__all__


def test_every_error_has_a_code_of_its_own() -> None:
    codes = {name: error.code for name, error in errors().items()}
    assert len(set(codes.values())) == len(codes)


def test_every_code_of_a_failure_has_its_error() -> None:
    codes = {error.code for error in errors().values()}
    # OK is no failure, and UNKNOWN is what InternalError stands for, too.
    assert codes == set(grpc.StatusCode) - {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN}


def test_errors_are_named_after_their_codes() -> None:
    for name, error in errors().items():
        words = error.code.name.split("_")
        assert name == "".join(word.capitalize() for word in words) + "Error"


def test_the_docstring_lists_every_error_with_its_code() -> None:
    lines = (loramux.errors.__doc__ or "").splitlines()
    table = {line.split()[1]: line.split()[2].rstrip(",") for line in lines if "─ " in line}
    assert table == {name: error.code.name for name, error in errors().items()}


def test_the_store_loads_little_before_it_is_opened() -> None:
    program = """
import sys
import loramux_server.store.registry
import loramux_server.store.uploads
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    found = set(ast.literal_eval(done.stdout))
    assert "msgspec" in found
    assert found & {"torch", "numpy", "sqlalchemy", "grpc", "google", "asyncio"} == set()


def test_the_frontend_process_has_neither_torch_nor_traces_by_default() -> None:
    program = """
import sys
import loramux_server.serving
print({name.partition(".")[0] for name in sys.modules} & {"torch", "opentelemetry"})
"""
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_grammars_are_the_business_of_one_process() -> None:
    assert "llguidance" in imported_by(ROOT / "server")
    apart = ("grammar.py", "worker.py")
    assert "llguidance" not in imported_by(ROOT / "server", but=apart)


def test_two_files_of_the_server_have_to_do_with_opentelemetry() -> None:
    assert "opentelemetry" in imported_by(ROOT / "server")
    apart = ("telemetry.py", "span_queue.py")
    assert "opentelemetry" not in imported_by(ROOT / "server", but=apart)
