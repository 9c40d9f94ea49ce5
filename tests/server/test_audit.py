"""What counts as an act, what its line holds, and that it is on the disk before the answer."""

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loramux._json_lines import JsonLines, without_paths
from loramux.v1 import aliases_pb2
from loramux_server.access.caller import Permission
from loramux_server.access.rules import RULES
from loramux_server.observe.audit import Audit, AuditFile, audited
from loramux_server.observe.audited_actions import AUDITED_ACTIONS, MAX_SHOWN, targets

QUIET = {
    "loramux.v1.UploadService.SendChunks",
    "loramux.v1.AliasService.ListAliasMoves",
    "loramux.v1.QuarantineService.ListQuarantined",
    "loramux.v1.ServerService.GetServerLoad",
}
"""What takes a publisher or an administrator, and changes nothing that others see."""


def test_every_call_that_changes_something_is_an_act() -> None:
    grave = (Permission.PUBLISH, Permission.ADMINISTER)
    changing = {method for method, rule in RULES.items() if rule.permission in grave}
    assert set(AUDITED_ACTIONS) | QUIET >= changing
    assert set(AUDITED_ACTIONS) <= changing


@pytest.mark.parametrize("name", [
    "n" * (MAX_SHOWN + 1), "a\nb", "/etc/passwd", "../x", "lmx_7a_Q2", "two words", "ä",
])  # fmt: skip
def test_of_what_is_no_name_only_the_length_is_reported(name: str) -> None:
    request = aliases_pb2.DeleteAliasRequest(name=name, alias="stable-2")
    reported = targets("loramux.v1.AliasService.DeleteAlias", request)
    assert reported == {"name": f"{len(name)} characters", "alias": "stable-2"}


async def test_an_act_is_synced_before_it_counts_as_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit"
    path.write_text('{"act": "earlier"}\n')
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_text()))
    audit = Audit(AuditFile(str(path)))
    await audit.record("adapter.delete", outcome="OK")
    assert [json.loads(line)["act"] for line in synced[0].splitlines()] == [
        "earlier", "adapter.delete"
    ]  # fmt: skip
    audit.close()


def test_a_file_that_is_moved_away_is_followed_by_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, moved = tmp_path / "audit", tmp_path / "audit.1"
    file = AuditFile(str(path))

    def acts(path: Path) -> list[int]:
        return [json.loads(line)["n"] for line in path.read_text().splitlines()]

    # As logrotate does it while entries come: rename, then create or not.
    rotations: dict[int, list[int]] = {}
    with ThreadPoolExecutor(4) as threads:
        for turn in range(5):
            list(threads.map(lambda n: file.append({"n": n}), range(20 * turn, 20 * turn + 20)))
            path.rename(moved)
            rotations[turn] = acts(moved)
            if turn % 2:
                path.touch(0o600)
    assert [sorted(found) for found in rotations.values()] == [
        list(range(20 * turn, 20 * turn + 20)) for turn in range(5)
    ]
    path.mkdir()  # cannot be opened
    file.append({"n": 100})
    assert acts(moved)[-1] == 100 and "keeping the old one" in caplog.text
    path.rmdir()
    file.append({"n": 101})
    assert acts(path) == [101] and path.stat().st_mode & 0o777 == 0o600
    file.close()


async def test_a_full_disk_is_logged_and_fails_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    audit = Audit(AuditFile(str(tmp_path / "audit")))
    await audit.record("adapter.delete", outcome="OK")
    audit.close()
    assert "No space left" in caplog.text


def test_a_command_that_failed_is_reported_as_failed(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    with pytest.raises(LookupError), audited(str(path), "key.revoke", key="abc"):
        raise LookupError
    with audited(str(path), "key.create") as reported:
        reported["key"] = "def"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["act"], e["key"], e["outcome"]) for e in entries] == [
        ("key.revoke", "abc", "failed"), ("key.create", "def", "ok")
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), [
    ("cannot open '/home/me/store/catalog.sqlite'", "cannot open '…/catalog.sqlite'"),
    ("/etc/passwd is there", "…/passwd is there"),
    ("s3://bucket/a/b and 1/2 and acme/poet", "s3://bucket/a/b and 1/2 and acme/poet"),
    ("<Thing at 0x7f0012345678>", "<Thing at 0x…>"),
])  # fmt: skip
def test_paths_and_addresses_do_not_get_into_json(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_a_process_writes_as_the_one_that_started_it() -> None:
    child = "from loramux._json_lines import set_up_logging as s; import logging; "
    child += "s('engine'); logging.error('no')"
    run = "from loramux._json_lines import set_up_logging as s; import sys; "
    run += "import subprocess; s(log_format='json'); "
    run += f"subprocess.run([sys.executable, '-c', {child!r}])"
    ran = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    reported = json.loads(ran.stderr)
    assert (reported["process"], reported["level"], reported["message"]) == (
        "engine",
        "error",
        "no",
    )


def test_an_exception_is_reported_without_what_it_says() -> None:
    try:
        raise ValueError("the prompt")
    except ValueError:
        error = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "two\nlines", None, error)
    line = JsonLines("frontend").format(record)
    reported = json.loads(line)
    assert "\n" not in line
    assert "the prompt" not in line
    assert (reported["exception"], reported["message"]) == ("ValueError", "two\nlines")
    assert len(reported["stack"]) == 1
    assert str(Path(__file__).parent) not in line
