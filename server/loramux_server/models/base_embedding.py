"""What the folder of a base model says of vectors of texts, as sentence-transformers saves that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loramux_adapters import PackageError
from loramux_adapters.embedding import Embedding, Pooling, embedding_of
from loramux_adapters.sentence_transformers import FILES, embedding_beside
from loramux_server.images.folder import folder_of
from loramux_server.wire.model_kind import ModelKind


@dataclass(frozen=True, slots=True)
class BaseEmbedding:
    """How the base makes one vector of a text, as far as its folder says."""

    note: Mapping[str, object] = field(default_factory=dict)
    """The same as a package notes it."""
    fault: str = ""
    """Why that cannot be done; empty where it can."""

    def on(self, kind: ModelKind) -> Embedding:
        """Return how a base of `kind` makes one where neither request nor package says."""
        pooling = Pooling.LAST if kind is ModelKind.DECODER else Pooling.MEAN
        return embedding_of(self.note, Embedding(pooling))


def read_embedding(path: str) -> BaseEmbedding:
    """Return what the folder or hub id `path` says."""
    try:
        return BaseEmbedding(embedding_beside(Path(folder_of(path, FILES))))
    except PackageError as error:
        return BaseEmbedding(fault=str(error))
    except (OSError, ValueError):
        return BaseEmbedding()
