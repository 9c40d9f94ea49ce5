"""Names for KV blocks: what a block holds depends on the adapter and every token up to its end.

The tenant is hashed as well: response times reveal whether blocks were cached, which must not
reveal other tenants' prompts.

Source: vLLM's automatic prefix caching, which chains the hash of a block to that of the one before.
"""

import hashlib
from array import array

from loramux_server.engine.request import Request


def name_blocks(request: Request, block_size: int, num_tokens: int) -> list[bytes]:
    """Return the names of the full blocks in the first `num_tokens` tokens of `request`.

    They are computed once and kept with the request. Two blocks have the same name only if tenant,
    adapter, cache salt, tokens and images are the same: the hash is cryptographic. Blocks before
    the one in which an adapter becomes active (aLoRA) are those of the base.
    """
    names = request.block_names
    for start in range(len(names) * block_size, num_tokens - block_size + 1, block_size):
        before = names[-1] if names else _root(request)
        if request.active_from and start <= request.active_from < start + block_size:
            before = _activated(before, request)
        before = _shown(before, request, start, start + block_size)
        tokens = array("q", request.tokens(start, start + block_size)).tobytes()
        names.append(hashlib.blake2b(before + tokens, digest_size=32).digest())
    return names[: num_tokens // block_size]


def _root(request: Request) -> bytes:
    """Return the hash before the first token: of the tenant, the adapter and the cache salt."""
    adapter = None if request.active_from else request.digest
    parts = [part.encode() for part in (request.tenant, adapter or "", request.cache_salt)]
    # Each is prefixed with its length, so that the sequence is unambiguous.
    return hashlib.blake2b(
        b"".join(len(part).to_bytes(8) + part for part in parts), digest_size=32
    ).digest()


def _activated(before: bytes, request: Request) -> bytes:
    """Return the hash before a block in which the adapter of `request` becomes active."""
    what = (request.digest or "").encode() + request.active_from.to_bytes(8)
    return hashlib.blake2b(before + what, digest_size=32, person=b"activated").digest()


def _shown(before: bytes, request: Request, start: int, end: int) -> bytes:
    """Return the hash before a block, extended by the images with tokens in the block."""
    for picture in request.pictures:
        if picture.start < end and picture.end > start:
            what = picture.digest + (start - picture.start).to_bytes(8, signed=True)
            before = hashlib.blake2b(before + what, digest_size=32, person=b"shown").digest()
    return before
