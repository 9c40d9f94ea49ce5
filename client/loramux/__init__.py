"""Call a loramux server: one base model, many LoRA adapters.

>>> from loramux import Client
>>> client = Client("localhost:50051")
>>> client.generate("abandon ->", adapter="reverse", temperature=0).text
' nodnaba'
"""

from loramux.aio import AsyncClient
from loramux.client import Client
from loramux.errors import LoramuxError
from loramux.types import (
    Adapter,
    AdapterIdentity,
    Chunk,
    Completion,
    FinishReason,
    Generation,
    Mix,
    SamplingOptions,
    ServerInfo,
    Usage,
)

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterIdentity",
    "AsyncClient",
    "Chunk",
    "Client",
    "Completion",
    "FinishReason",
    "Generation",
    "LoramuxError",
    "Mix",
    "SamplingOptions",
    "ServerInfo",
    "Usage",
    "__version__",
]
