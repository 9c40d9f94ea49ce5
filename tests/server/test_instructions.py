"""What packages say about their use is read when it is first needed."""

import io
import json
from pathlib import Path

from loramux_adapters import pack
from loramux_server.engine.messages import AdapterSource
from loramux_server.store.instructions import NONE, Instruction, Instructions
from tests.adapters.files import write_folder


def damage(source: AdapterSource, raw: bytes) -> None:
    Path(source.path).write_bytes(raw)


def content(source: AdapterSource) -> bytes:
    return Path(source.path).read_bytes()


def packed(folder: Path, notes: dict[str, object], number: int = 1) -> AdapterSource:
    """Return a package with `notes`, which was stored earlier."""
    source = write_folder(folder / f"source{number}")
    (source / "loramux.json").write_text(json.dumps(notes))
    output = io.BytesIO()
    pack(source, output)
    path = folder / f"package{number}"
    path.write_bytes(output.getvalue())
    return AdapterSource(f"sha256:{number:064x}", str(path), 2, 100)


async def test_a_package_is_read_once(tmp_path: Path) -> None:
    notes: dict[str, object] = {"chat_template": "{{ 1 }}", "generation": {"temperature": 0.5}}
    source = packed(tmp_path, notes)
    known = Instructions()
    wanted = Instruction("{{ 1 }}", {"temperature": 0.5})
    assert await known.of(source) == wanted
    damage(source, b"")
    assert await known.of(source) == wanted


async def test_a_package_that_says_nothing_has_none(tmp_path: Path) -> None:
    assert await Instructions().of(packed(tmp_path, {"licence": "MIT"})) == NONE


async def test_a_damaged_package_is_left_to_its_load(tmp_path: Path) -> None:
    source = packed(tmp_path, {"generation": {"temperature": 0.5}})
    whole = content(source)
    known = Instructions()
    for damaged in (b"", whole[:5], whole[:100], b"\xff" * 200):
        damage(source, damaged)
        assert await known.of(source) == NONE
    damage(source, whole)
    assert (await known.of(source)).generation == {"temperature": 0.5}
