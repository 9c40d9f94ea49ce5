"""What `loramux ls` prints."""

import datetime
import io
from dataclasses import replace

import pytest
from rich.console import Console

from loramux.cli.listing import property_table, usage_table
from loramux.cli.tables import table_console
from loramux.types import Adapter, AdapterStatus

LONG = "support-for-customers-of-northern-regions:12"
MODULES = tuple(f"{name}_proj" for name in ("down", "gate", "k", "o", "q", "up", "v"))


def adapter(reference: str, *modules: str) -> Adapter:
    name, version = reference.split(":")
    return Adapter(
        name=name, tenant="public", version=int(version), digest="sha256:" + "a" * 64,
        size_bytes=13_000_000, rank=16, method="LORA", invocation_token_ids=(), virtual_tokens=0,
        task="", target_modules=modules, base_model="", source="directory", origin="",
        created_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), tier="device",
        aliases=("stable",), is_pinned=False, expires_at=None, reference=reference,
        status=AdapterStatus(False, "", 0, 1, 2, 3, 4, None),
    )  # fmt: skip


def printed(table: object, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().splitlines()


def test_in_80_columns_names_are_whole_and_targets_counted() -> None:
    adapters = [adapter(LONG, *MODULES), adapter("a:1", "q_proj", "v_proj")]
    lines = printed(property_table(adapters, wide=False), 80)
    assert any(LONG in line for line in lines)
    assert "gate_proj" not in "".join(lines)
    short = printed(property_table([adapter("sql:3", *MODULES)], wide=False), 80)
    assert len(short) == 2 and " 7 modules " in short[1]
    two = printed(property_table(adapters[1:], wide=False), 80)
    assert "q_proj v_proj" in two[1]
    assert any(LONG in line for line in printed(usage_table(adapters), 80))


def test_wide_shows_all_targets_and_digests(capsys: pytest.CaptureFixture[str]) -> None:
    modules = [f"layers.{number}.{name}" for number in range(9) for name in MODULES]
    table_console(wide=True).print(property_table([adapter(LONG, *modules)], wide=True))
    _, line = capsys.readouterr().out.splitlines()
    assert " ".join(modules) in line and "sha256:" + "a" * 64 in line


def test_texts_of_a_server_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    failure = "no [bold] weight in [/tmp/a] :warning:"
    failed = adapter("a:1", "q_proj")
    failed = replace(failed, status=replace(failed.status, load_failure=failure))
    table_console().print(property_table([failed], wide=False))
    table_console().print(usage_table([failed]))
    assert capsys.readouterr().out.count(failure) == 2
