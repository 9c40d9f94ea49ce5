"""The context length of requests: that of the model, or less."""

import logging

from torch import nn

from loramux_server.models.base_model import BaseModel
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.engine_config import EngineConfig

_log = logging.getLogger(__name__)

_MOST_SPARE = 4
"""Most rows of a position table that no token uses: some models have such for padding."""


def served_context(model: BaseModel, config: EngineConfig) -> int:
    """Return the context length to serve, at most that of `model`.

    Raises:
        UnservableModelError: `config` asks for more, and the model has a position table, beyond
            which there is nothing.
    """
    requested, own = config.max_context, model.context_length
    if requested > own:
        if _has_position_table(model):
            raise UnservableModelError(
                f"--max-context is {requested}, but {model.name} has embeddings for {own} positions"
            )
        _log.warning(
            "--max-context %d exceeds the context of %s; using %d", requested, model.name, own
        )
    return min(requested or own, own)


def _has_position_table(model: BaseModel) -> bool:
    """Return whether `model` has a table of position embeddings instead of a formula."""
    own, source = model.context_length, model.source_length
    # An encoder's counts as well. Vision layers have one of another size, for places in images.
    lengths = (own - source, source) if source else (own,)
    return any(
        isinstance(part, nn.Embedding)
        and ("position" in name or name.endswith("wpe"))
        and any(0 <= part.num_embeddings - length <= _MOST_SPARE for length in lengths)
        for name, part in model.module.named_modules()
    )
