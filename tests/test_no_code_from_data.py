"""No source of ours runs code that comes as data: nothing that could is called or imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    path
    for folder in ("client", "server", "adapters")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
]
MODULES = {"pickle", "cPickle", "marshal", "dill", "cloudpickle", "joblib", "shelve", "yaml", "imp"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load",
    "extractall", "unpack_archive", "torch.jit.load", "runpy.run_path",
}  # fmt: skip
FLAGS = {"shell", "trust_remote_code", "allow_pickle"}


def faults(source: str) -> Iterator[str]:
    """Yield what in `source` could run data as code."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name for name in names if name.partition(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "torch.load" and ast.unparse(node).endswith(", weights_only=True)"):
                continue  # makes tensors and nothing else
            if called in CALLS or called.rpartition(".")[2] in CALLS & {"extractall"}:
                yield called
            for keyword in node.keywords:
                is_off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg in FLAGS and not is_off:
                    yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def test_no_source_runs_data_as_code() -> None:
    found = {
        str(path.relative_to(ROOT)): fault
        for path in SOURCES
        for fault in faults(path.read_text(encoding="utf-8"))
    }
    assert len(SOURCES) > 100
    assert found == {}


@pytest.mark.parametrize("source", [
    "import pickle", "from marshal import loads", "eval(text)", "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "archive.extractall(path)", "run(command, shell=True)", "load(trust_remote_code=flag)",
    "numpy.load(path, allow_pickle=True)", "os.system(command)",
])  # fmt: skip
def test_what_could_is_found(source: str) -> None:
    assert list(faults(source))


def test_what_could_not_is_not() -> None:
    assert not list(faults("load(path, trust_remote_code=False)\nre.compile(text)\nimport json"))
    assert not list(faults("torch.load(path, weights_only=True)"))
