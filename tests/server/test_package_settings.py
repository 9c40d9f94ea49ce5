"""What packages say about their use is read when it is first needed."""

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest

from loramux.errors import UnavailableError
from loramux_adapters import pack
from loramux_adapters.labels import Labels, ProblemType
from loramux_server.store.package_settings import (
    NONE,
    UNKNOWN,
    PackageSettings,
    PackageSettingsCache,
)
from loramux_server.wire.adapter_source import AdapterSource
from tests.adapters.files import CONFIG, TENSORS, Tensors, write_folder
from tests.adapters.test_heads import TEXTS, with_head


def damage(source: AdapterSource, raw: bytes) -> None:
    Path(source.path).write_bytes(raw)


def remove(source: AdapterSource) -> None:
    Path(source.path).unlink()


def content(source: AdapterSource) -> bytes:
    return Path(source.path).read_bytes()


def packed(
    folder: Path, notes: dict[str, object], number: int = 1, *, tensors: Tensors = TENSORS,
    config: dict[str, Any] = CONFIG,
) -> AdapterSource:  # fmt: skip
    """Return a package with `notes`, which was stored earlier."""
    source = write_folder(folder / f"source{number}", tensors, config)
    (source / "loramux.json").write_text(json.dumps(notes))
    output = io.BytesIO()
    pack(source, output)
    path = folder / f"package{number}"
    path.write_bytes(output.getvalue())
    return AdapterSource(f"sha256:{number:064x}", str(path), 2, 100)


async def test_a_package_is_read_once(tmp_path: Path) -> None:
    notes: dict[str, object] = {"chat_template": "{{ 1 }}", "generation": {"temperature": 0.5}}
    source = packed(tmp_path, notes)
    known = PackageSettingsCache()
    wanted = PackageSettings("{{ 1 }}", {"temperature": 0.5})
    assert await known.of(source) == wanted
    damage(source, b"")
    assert await known.of(source) == wanted


async def test_a_package_that_says_nothing_has_none(tmp_path: Path) -> None:
    assert await PackageSettingsCache().of(packed(tmp_path, {"licence": "MIT"})) == NONE


async def test_a_package_that_classifies_says_what_its_outputs_mean(tmp_path: Path) -> None:
    source = packed(tmp_path, {}, tensors=with_head(2), config=TEXTS)
    assert await PackageSettingsCache().of(source) == PackageSettings(
        labels=Labels(("LABEL_0", "LABEL_1"), ProblemType.SINGLE_LABEL)
    )


async def test_what_was_not_used_for_longest_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramux_server.store.package_settings.KEPT", 2)
    first, second, third = (
        packed(tmp_path, {"chat_template": str(number)}, number) for number in range(3)
    )
    known = PackageSettingsCache()
    for source in (first, second, first, third):
        await known.of(source)
    for source in (first, second, third):
        damage(source, b"")
    assert [(await known.of(source)).chat_template for source in (first, third, second)] == [
        "0", "2", None,
    ]  # fmt: skip


async def test_a_damaged_package_is_left_to_its_load(tmp_path: Path) -> None:
    source = packed(tmp_path, {"generation": {"temperature": 0.5}})
    whole = content(source)
    known = PackageSettingsCache()
    for damaged in (b"", whole[:5], whole[:100], b"\xff" * 200):
        damage(source, damaged)
        assert await known.of(source) == UNKNOWN
    remove(source)
    assert await known.of(source) == UNKNOWN
    damage(source, whole)
    assert (await known.of(source)).generation == {"temperature": 0.5}


async def test_what_cannot_be_read_at_present_is_not_taken_for_one_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = packed(tmp_path, {"generation": {"temperature": 0.5}})
    known = PackageSettingsCache()

    def fail(number: int) -> None:
        def opened(*_: object) -> None:
            raise OSError(number, "injected")

        monkeypatch.setattr(Path, "open", opened)

    fail(errno.EMFILE)
    with pytest.raises(UnavailableError, match="at present: injected") as caught:
        await known.of(source)
    assert (caught.value.reason, caught.value.field) == ("STORE_UNAVAILABLE", "adapter")
    fail(errno.EIO)
    assert await known.of(source) == UNKNOWN
    monkeypatch.undo()
    assert (await known.of(source)).generation == {"temperature": 0.5}
