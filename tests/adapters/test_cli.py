"""`loramux pack` and `loramux inspect`, through the command line."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from loramux_adapters import read_package
from tests.adapters.files import CONFIG, TENSORS, package, pair, tensor_file, write_folder
from tests.support.command_line import Loramux, Result


def test_pack_writes_a_package_named_after_the_folder(loramux: Loramux, poet: Path) -> None:
    done = loramux("pack", "poet")
    content = Path("poet.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert done == Result(0, f"poet.safetensors sha256:{digest}\n", "")
    with Path("poet.safetensors").open("rb") as file:
        assert read_package(file, len(content)).rank == 3


def test_pack_names_the_package_of_this_folder_after_it(
    loramux: Loramux, poet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(poet)
    assert loramux("pack", ".").code == 0
    assert (poet / "poet.safetensors").exists()


def test_pack_writes_to_the_given_path(loramux: Loramux, poet: Path, tmp_path: Path) -> None:
    Path("packages").mkdir()
    done = loramux("pack", str(poet), "--output", "packages/one", "--json")
    content = Path("packages/one").read_bytes()
    assert json.loads(done.output) == {
        "path": "packages/one",
        "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "size_bytes": len(content),
    }
    assert done.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages", "poet"]


def test_packing_twice_gives_equal_bytes(loramux: Loramux, poet: Path) -> None:
    loramux("pack", "poet", "-o", "one")
    loramux("pack", "poet", "-o", "two")
    assert Path("one").read_bytes() == Path("two").read_bytes()


def test_pack_replaces_a_package(loramux: Loramux, poet: Path) -> None:
    Path("poet.safetensors").write_text("old")
    assert loramux("pack", "poet").code == 0
    assert Path("poet.safetensors").read_bytes() != b"old"


def test_inspect_shows_each_kind_of_layer(loramux: Loramux, poet: Path) -> None:
    done = loramux("inspect", "poet")
    lines = [line.split() for line in done.output.splitlines()]
    assert done.code == 0
    assert lines[2] == ["base", "org/base"]
    assert lines[3] == [
        "target", "layers", "rank", "scale", "in", "out", "dtype", "norm", "used",
    ]  # fmt: skip
    assert lines[4] == ["q_proj", "2", "2", "2.0", "4", "3", "F32", "0.0..163.3", "0.0..1.002"]
    assert lines[5] == ["up_proj", "1", "3", "1.333333", "7", "9", "F16", "0.0", "0.0"]


def test_inspect_shows_ranges_where_layers_differ(loramux: Loramux, tmp_path: Path) -> None:
    tensors = {**TENSORS, **pair("model.layers.1.q_proj", 4, features=(4, 5), dtype="BF16")}
    config = CONFIG | {"rank_pattern": {"layers.1.q_proj": 4}}
    write_folder(tmp_path / "adapter", tensors, config)
    (row,) = json.loads(loramux("inspect", "adapter", "--json").output)["targets"]
    assert row == {
        "target": "q_proj",
        "layers": 2,
        "rank": "2..4",
        "scale": "1.0..2.0",
        "in_features": 4,
        "out_features": "3..5",
        "dtype": "BF16/F32",
        "norm": "0.0..163.3",
        "effective_rank": "0.0..1.002",
    }


def test_a_folder_and_its_package_look_alike(loramux: Loramux, poet: Path) -> None:
    loramux("pack", "poet")
    assert loramux("inspect", "poet") == loramux("inspect", "poet.safetensors")
    folder = loramux("inspect", "poet", "--json")
    assert folder == loramux("inspect", "poet.safetensors", "--json")
    found = json.loads(folder.output)
    assert found["peft_config"]["rank_pattern"] == {"up_proj": 3}
    assert found["size_bytes"] == Path("poet.safetensors").stat().st_size


@pytest.fixture
def mistakes(tmp_path: Path) -> None:
    """Files that are no adapters."""
    write_folder(tmp_path / "adapter")
    write_folder(tmp_path / "qalora", config=CONFIG | {"use_qalora": True})
    (write_folder(tmp_path / "pickled") / "adapter_model.safetensors").rename(
        tmp_path / "pickled" / "adapter_model.bin"
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare.safetensors").write_bytes(tensor_file(b"{}"))
    (tmp_path / "cut.safetensors").write_bytes(package()[:-1])


@pytest.mark.usefixtures("mistakes")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pack absent", "absent has no readable adapter_config.json"),
        ("pack empty", "empty has no readable adapter_config.json"),
        ("pack cut.safetensors", "the tensors need 56 bytes, but the file has 55"),
        ("pack pickled", "adapter_model.bin is a pickle"),
        ("pack qalora", "'use_qalora' = True is not supported"),
        ("pack adapter -o absent/there", "No such file or directory"),
        ("pack adapter -o empty", "empty exists and is not a regular file"),
        ("inspect absent", "absent: No such file or directory"),
        ("inspect empty", "empty has no readable adapter_config.json"),
        ("inspect qalora", "'use_qalora' = True is not supported"),
        ("inspect bare.safetensors", "no tensors"),
        ("inspect cut.safetensors", "the tensors need 56 bytes, but the file has 55"),
        ("inspect adapter/adapter_model.safetensors", "bare tensor file"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: str, message: str, loramux: Loramux, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = loramux(*arguments.split())
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith("loramux: ")
    assert message in done.errors
    assert done.errors.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_pack_does_not_replace_what_is_no_file(loramux: Loramux, poet: Path) -> None:
    os.mkfifo("pipe")
    done = loramux("pack", "poet", "-o", "pipe")
    said = "loramux: pipe exists and is not a regular file, so it is not replaced\n"
    assert done == Result(1, "", said)
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)


@pytest.mark.parametrize(
    "arguments", ["pack", "pack one two", "pack poet --bogus", "inspect", "bogus", "pack poet -o"]
)
def test_wrong_usage_exits_2(arguments: str, loramux: Loramux, poet: Path) -> None:
    done = loramux(*arguments.split())
    assert (done.code, done.output) == (2, "")
    assert "Error: " in done.errors


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_package_is_whole_or_absent(before: bytes | None, tmp_path: Path) -> None:
    write_folder(tmp_path / "large", pair("model.q_proj", 2, features=(1 << 14, 1 << 14)))
    target = tmp_path / "package"
    if before is not None:
        target.write_bytes(before)
    # Files of this process end at 64 KiB, as they would on a full disk.
    program = """
import resource, sys
from loramux.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
sys.argv = ["loramux", "pack", "large", "-o", "package"]
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "loramux: [Errno 27] File too large\n"
    assert (target.read_bytes() if target.exists() else None) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"large", "package"}


def test_help_is_quick_because_it_loads_no_engine() -> None:
    program = """
import sys
from loramux.cli import main
sys.argv = ["loramux", "--help"]
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert all(command in done.stdout for command in ("serve", "pack", "inspect", "push"))
    loaded = set(done.stderr.split())
    heavy = {"torch", "numpy", "numba", "transformers", "tokenizers", "safetensors", "sqlalchemy"}
    assert loaded & heavy == set()
    servers = {
        "server",
        "services",
        "store.catalog",
        "models",
        "kernels",
        "lora.packed",
        "engine.engine",
    }
    assert loaded & {f"loramux_server.{name}" for name in servers} == set()
