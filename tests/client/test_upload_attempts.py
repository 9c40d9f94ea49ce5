"""Which failed attempts of an upload are followed by another."""

import io
import time

import pytest

from loramux._upload import MAX_FAILURES, Upload
from loramux.errors import InternalError, InvalidArgumentError, LoramuxError, UnavailableError
from loramux.v1 import adapters_pb2, uploads_pb2


def begun() -> Upload:
    header = adapters_pb2.UploadHeader(name="a", size_bytes=4, sha256="00" * 32)
    upload = Upload(io.BytesIO(b"four"), header, None, time.monotonic() + 600)
    assert upload.started(uploads_pb2.StartUploadResponse(upload_id="u", committed_bytes=0))
    return upload


@pytest.mark.parametrize(
    "error", [UnavailableError("gone"), InternalError("Internal error from Core")]
)
def test_what_the_transport_says_is_tried_again(error: LoramuxError) -> None:
    upload = begun()
    for _ in range(MAX_FAILURES):
        assert upload.delay(error) > 0
    with pytest.raises(type(error)):
        upload.delay(error)


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgumentError("no", reason="INVALID_FIELD", field="header.name"),
        InternalError("internal error, incident 1", reason="INTERNAL"),
    ],
)
def test_what_the_server_says_is_final(error: LoramuxError) -> None:
    with pytest.raises(type(error)):
        begun().delay(error)
