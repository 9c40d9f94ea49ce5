"""How a base model's folder says that texts are embedded, in sentence-transformers' format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loramux_adapters import PackageError
from loramux_adapters.embedding import Embedding, Pooling, embedding_of
from loramux_adapters.sentence_transformers import FILES, embedding_from_folder
from loramux_server.images.folder import folder_of
from loramux_server.wire.model_kind import ModelKind


@dataclass(frozen=True, slots=True)
class BaseEmbedding:
    """How the base embeds a text, as far as its folder says."""

    note: Mapping[str, object] = field(default_factory=dict)
    """The same in the form that packages use."""
    fault: str = ""
    """Why texts cannot be embedded that way; empty if they can."""

    def on(self, kind: ModelKind) -> Embedding:
        """Return how a base of `kind` embeds a text if neither request nor package says."""
        pooling = Pooling.LAST if kind is ModelKind.DECODER else Pooling.MEAN
        return embedding_of(self.note, Embedding(pooling))


def read_embedding(path: str) -> BaseEmbedding:
    """Return what the folder or hub id `path` says."""
    try:
        return BaseEmbedding(embedding_from_folder(Path(folder_of(path, FILES))))
    except PackageError as error:
        return BaseEmbedding(fault=str(error))
    except (OSError, ValueError):
        return BaseEmbedding()
