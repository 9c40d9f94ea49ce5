"""How many tokens a request may have: what a model allows, or fewer."""

import logging

from torch import nn

from loramux_server.models.base_model import BaseModel
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.engine_config import EngineConfig

_log = logging.getLogger(__name__)

_MOST_SPARE = 4
"""Positions of a table that no token has: those of padding in some models."""


def served_context(model: BaseModel, config: EngineConfig) -> int:
    """Return the most tokens of a request, never more than `model` has.

    Raises:
        UnservableModelError: `config` says more, and the model has a table of its positions, beyond
            which there is nothing.
    """
    asked, own = config.max_context, model.context_length
    if asked > own:
        if _has_position_table(model):
            raise UnservableModelError(
                f"--max-context is {asked}, and the positions of {model.name} are a table of {own}"
            )
        _log.warning("--max-context %d exceeds the context of %s; using %d", asked, model.name, own)
    return min(asked or own, own)


def _has_position_table(model: BaseModel) -> bool:
    """Return whether `model` has an embedding for each position, in place of a rule for all."""
    own, source = model.context_length, model.source_length
    # That of an encoder, too; what sees images has another for places in them.
    lengths = (own - source, source) if source else (own,)
    return any(
        isinstance(part, nn.Embedding)
        and ("position" in name or name.endswith("wpe"))
        and any(0 <= part.num_embeddings - length <= _MOST_SPARE for length in lengths)
        for name, part in model.module.named_modules()
    )
