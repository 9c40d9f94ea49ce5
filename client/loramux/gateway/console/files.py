"""The files of the page."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file, ready to be sent."""

    content: bytes
    kind: str
    etag: str


class Files:
    """Answers with the files of the page, and nothing else: they are read once."""

    def __init__(self) -> None:
        """Read them.

        Raises:
            OSError: They are not there.
        """
        self._files = {path.name: _read(path) for path in _FOLDER.iterdir()}

    def page(self, request: Request) -> Response:
        """`GET /console`."""
        return self._answer("index.html", request)

    def file(self, request: Request) -> Response:
        """`GET /console/{name}`."""
        return self._answer(request.path_params["name"], request)

    def _answer(self, name: str, request: Request) -> Response:
        file = self._files.get(name)
        if file is None:
            raise HTTPException(404)
        # A browser asks each time, as after an upgrade all files have to be of one version.
        headers = {"etag": file.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, 200, headers, file.kind)


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, _KINDS[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
