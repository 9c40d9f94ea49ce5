"""vLLM's requests that bring an adapter and take it away, as calls of all servers behind."""

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
"""Adapters that are read and packed here, which takes a thread and a disk each."""
_FIELDS = {
    "name": "lora_name",
    "header.name": "lora_name",
    "uri": "lora_path",
    "chunk": "lora_path",
    "header.size_bytes": "lora_path",
}
"""Field of the server's requests -> field of vLLM's that it comes of."""


class LoadBody(msgspec.Struct, kw_only=True):
    """What a request to bring an adapter may say."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    """Whether it becomes the next version of a name that has other content."""


class UnloadBody(msgspec.Struct, kw_only=True):
    """What a request to take one away may say."""

    lora_name: str
    lora_int_id: int | None = None
    """vLLM's number for it, which does not count there either."""


class LoraAdapters:
    """Brings adapters to the servers, and takes them away."""

    def __init__(self, root: LoraRoot | None) -> None:
        """Prepare; `root` is where paths are read, None for nowhere."""
        self._root = root
        self._turns = asyncio.Semaphore(_MAX_AT_ONCE)

    async def load(self, body: LoadBody, backend: Backend, caller: Caller) -> Response:
        """Register what is at `lora_path` with every server, as far as it does not have it.

        Raises:
            LoramuxError: It cannot be had or be served, or the caller may not; the error names
                vLLM's field.
        """
        servers = await backend.adapters_of_each(caller)
        with _fields_of_vllm():
            if "://" in body.lora_path:
                for adapters in servers:
                    await adapters.import_from(
                        body.lora_name, body.lora_path, must_not_exist=not body.load_inplace
                    )
            else:
                await backend.info(caller)  # no file is touched for who is not known
                async with self._turns:
                    await self._upload(body, servers)
        return _success(f"LoRA adapter '{body.lora_name}' added successfully.", caller)

    async def unload(self, body: UnloadBody, backend: Backend, caller: Caller) -> Response:
        """Take the adapter `lora_name` away from every server that has it.

        Raises:
            LoramuxError: No server has it, or the caller may not; the error names vLLM's field.
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
        """Send what is at a path of this machine.

        Raises:
            LoramuxError: It is not there, is not to be read, or cannot be served.
        """
        if self._root is None:
            raise invalid(
                "lora_path",
                f"lora_path is {body.lora_path!r}, but this gateway reads no paths: start it with "
                "--lora-path-root, or give a URI that begins with hf://, s3://, gs://, az:// or oci://",
            )
        try:
            path = await asyncio.to_thread(self._root.find, body.lora_path)
            for adapters in servers:
                await _send(path, adapters, body)
        except LoramuxError:  # of which some are such errors, too
            raise
        except PermissionError:
            raise invalid(
                "lora_path", f"lora_path is {body.lora_path!r}, which the gateway may not read"
            ) from None


async def _send(path: Path, adapters: AsyncAdapters, body: LoadBody) -> None:
    """Upload what is at `path`.

    Raises:
        LoramuxError: It is no adapter, or the server refuses it.
    """
    try:
        await adapters.upload(body.lora_name, path, must_not_exist=not body.load_inplace)
    except InvalidArgumentError as error:
        if error.field:
            raise
        # What packing finds has no field, and the path as it is here.
        said = str(error).replace(str(path), body.lora_path)
        raise InvalidArgumentError(
            f"lora_path: {said}", reason=error.reason, field="lora_path"
        ) from None


@contextmanager
def _fields_of_vllm() -> Iterator[None]:
    """Name vLLM's fields in what the server refuses, and answer 400 where a name is taken."""
    try:
        yield
    except AlreadyExistsError as error:
        raise InvalidArgumentError(
            f"lora_name: {error}; set load_inplace to true to make this its next version",
            reason=error.reason,
            field="lora_name",
        ) from None
    except LoramuxError as error:
        field = _FIELDS.get(error.field)
        if field is None:
            raise
        said = re.sub(r"^(?:header\.)?name\b|^uri\b", field, str(error))
        raise type(error)(
            said if said.startswith(field) else f"{field}: {said}",
            reason=error.reason,
            field=field,
            retry_delay=error.retry_delay,
            quota=error.quota,
        ) from None


def _success(what: str, caller: Caller) -> Response:
    return Response(f"Success: {what}", 200, caller.returned, "text/plain")
