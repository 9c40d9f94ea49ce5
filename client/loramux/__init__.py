"""Call a loramux server: one base model, many LoRA adapters.

>>> from loramux import Client
>>> client = Client("localhost:50051")
>>> client.generate("abandon ->", adapter="reverse", temperature=0).text
' nodnaba'
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from loramux.aio import AsyncClient
    from loramux.client import Client
    from loramux.errors import LoramuxError
    from loramux.types import (
        Adapter,
        AdapterIdentity,
        Chunk,
        Classification,
        Completion,
        Embedding,
        FinishReason,
        Generation,
        Image,
        Message,
        Mix,
        QuestionAnswering,
        RequestOptions,
        SamplingOptions,
        ServerInfo,
        Tokens,
        ToolCall,
        Usage,
    )

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterIdentity",
    "AsyncClient",
    "Chunk",
    "Classification",
    "Client",
    "Completion",
    "Embedding",
    "FinishReason",
    "Generation",
    "Image",
    "LoramuxError",
    "Message",
    "Mix",
    "QuestionAnswering",
    "RequestOptions",
    "SamplingOptions",
    "ServerInfo",
    "Tokens",
    "ToolCall",
    "Usage",
    "__version__",
]

_PLACES = {
    "AsyncClient": "loramux.aio",
    "Client": "loramux.client",
    "LoramuxError": "loramux.errors",
}


def __getattr__(name: str) -> object:
    """Import lazily, so that errors and the version need neither gRPC nor protobuf."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES.get(name, "loramux.types")), name)
    globals()[name] = value
    return value
