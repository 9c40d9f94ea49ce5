"""vLLM's requests to load and unload an adapter, as calls of every server behind the gateway."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from starlette.responses import Response

from loramux._aio_adapters import AsyncAdapters
from loramux.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    LoramuxError,
    NotFoundError,
)
from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller
from loramux.gateway.lora_root import LoraRoot
from loramux.gateway.refusal import invalid

_MAX_AT_ONCE = 2
"""Adapters that are read and packed here at a time: each takes a thread and disk bandwidth."""
_FIELDS = {
    "name": "lora_name",
    "header.name": "lora_name",
    "uri": "lora_path",
    "chunk": "lora_path",
    "header.size_bytes": "lora_path",
}
"""Field of the server's requests -> vLLM's field that it is made from."""


class LoadBody(msgspec.Struct, kw_only=True):
    """The body of a request to load an adapter."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    """Whether it becomes the next version if the name exists with other content."""


class UnloadBody(msgspec.Struct, kw_only=True):
    """The body of a request to unload an adapter."""

    lora_name: str
    lora_int_id: int | None = None
    """Ignored, as by vLLM."""


class LoraAdapters:
    """Registers adapters with the servers, and deletes them."""

    def __init__(self, root: LoraRoot | None) -> None:
        """Initialize; `root` is the folder below which paths are allowed, None for no paths."""
        self._root = root
        self._turns = asyncio.Semaphore(_MAX_AT_ONCE)

    async def load(self, body: LoadBody, backend: Backend, caller: Caller) -> Response:
        """Register the adapter at `lora_path` with every server that does not have it yet.

        Raises:
            LoramuxError: It cannot be read or served, or the caller lacks permission; the error
                names vLLM's field.
        """
        servers = await backend.adapters_of_each(caller)
        with _fields_of_vllm():
            if "://" in body.lora_path:
                for adapters in servers:
                    await adapters.import_from(
                        body.lora_name, body.lora_path, must_not_exist=not body.load_inplace
                    )
            else:
                await backend.info(caller)  # authenticate before any file is touched
                async with self._turns:
                    await self._upload(body, servers)
        return _success(f"LoRA adapter '{body.lora_name}' added successfully.", caller)

    async def unload(self, body: UnloadBody, backend: Backend, caller: Caller) -> Response:
        """Delete the adapter `lora_name` from every server that has it.

        Raises:
            LoramuxError: No server has it, or the caller lacks permission; the error names vLLM's
                field.
        """
        is_gone = False
        missing: NotFoundError | None = None
        with _fields_of_vllm():
            for adapters in await backend.adapters_of_each(caller):
                try:
                    await adapters.delete(body.lora_name)
                    is_gone = True
                except NotFoundError as error:
                    missing = error
            if missing and not is_gone:
                raise missing
        return _success(f"LoRA adapter '{body.lora_name}' removed successfully.", caller)

    async def _upload(self, body: LoadBody, servers: list[AsyncAdapters]) -> None:
        """Upload the adapter at a path on this machine.

        Raises:
            LoramuxError: It does not exist, may not be read, or cannot be served.
        """
        if self._root is None:
            raise invalid(
                "lora_path",
                f"lora_path is {body.lora_path!r}, but this gateway does not load paths: start it "
                "with --lora-path-root, or use a URI with hf://, s3://, gs://, az:// or oci://",
            )
        try:
            path = await asyncio.to_thread(self._root.find, body.lora_path)
            for adapters in servers:
                await _send(path, adapters, body)
        except LoramuxError:  # some are a PermissionError, too
            raise
        except PermissionError:
            raise invalid(
                "lora_path",
                f"lora_path is {body.lora_path!r}, which the gateway has no permission to read",
            ) from None


async def _send(path: Path, adapters: AsyncAdapters, body: LoadBody) -> None:
    """Upload the adapter at `path`.

    Raises:
        LoramuxError: It is not an adapter, or the server refuses it.
    """
    try:
        await adapters.upload(body.lora_name, path, must_not_exist=not body.load_inplace)
    except InvalidArgumentError as error:
        if error.field:
            raise
        # Errors of packing name no field, and contain the local path.
        message = str(error).replace(str(path), body.lora_path)
        raise InvalidArgumentError(
            f"lora_path: {message}", reason=error.reason, field="lora_path"
        ) from None


@contextmanager
def _fields_of_vllm() -> Iterator[None]:
    """Put vLLM's field names in the server's errors, and turn ALREADY_EXISTS into a 400."""
    try:
        yield
    except AlreadyExistsError as error:
        raise InvalidArgumentError(
            f"lora_name: {error}; set load_inplace to true to register a new version",
            reason=error.reason,
            field="lora_name",
        ) from None
    except LoramuxError as error:
        field = _FIELDS.get(error.field)
        if field is None:
            raise
        message = re.sub(r"^(?:header\.)?name\b|^uri\b", field, str(error))
        raise type(error)(
            message if message.startswith(field) else f"{field}: {message}",
            reason=error.reason,
            field=field,
            retry_delay=error.retry_delay,
            quota=error.quota,
        ) from None


def _success(what: str, caller: Caller) -> Response:
    return Response(f"Success: {what}", 200, caller.returned, "text/plain")
