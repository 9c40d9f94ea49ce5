"""A real PostgreSQL for tests, where its programs are installed."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import psycopg

from tests.support.memory import memory_folder
from tests.support.polling import eventually


def binaries() -> Path | None:
    """Return the folder with `initdb` and `postgres`, if there is one; Debian's is in no PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


class Postgres:
    """A database server in a temporary folder, that only a socket in it leads to."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        # Names of sockets may have a hundred characters.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir=memory_folder() or "/tmp"))
        # It does not run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self._folder, self._user)
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "tests", "--no-sync")
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def start(self) -> Self:
        command = [
            str(self._programs / "postgres"), "-D", self._data, "-k", str(self._folder),
            "-c", "listen_addresses=",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, user=self._user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert eventually(self._answers)
        return self

    def stop(self) -> None:
        """End it at once, as a crash does."""
        assert self._process is not None
        self._process.send_signal(3)  # SIGQUIT takes its children along
        self._process.wait()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def make_database(self) -> str:
        """Return the URL of a database with nothing in it."""
        self._number += 1
        name = f"catalog{self._number}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://tests@/{name}?host={self._folder}"

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host=str(self._folder), user="tests", dbname="postgres", autocommit=True
        )

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments], user=self._user, check=True, cwd=self._folder,
            capture_output=True,
        )  # fmt: skip
