"""The names by which clients may call the base model."""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from loramux_server.config import ServerConfig
from loramux_server.store.record import AdapterRecord
from loramux_server.wire.model_info import ModelInfo

_log = logging.getLogger(__name__)


def named(model: ModelInfo, config: ServerConfig) -> ModelInfo:
    """Return `model` with the names that clients may use.

    They are those of `--served-model-name`, or else the last part of `--model`, and all of it if
    that is a hub id. A path is never revealed.
    """
    first, *others = config.served_model_name or (model.name, *_hub_id(config.model))
    return msgspec.structs.replace(model, name=first, aliases=others)


def _hub_id(model: str) -> list[str]:
    is_hub_id = model.count("/") == 1 and not model.startswith(("/", ".", "~"))
    return [model] if is_hub_id and not Path(model).is_dir() else []


class SharedNames:
    """Warns operators of adapters that share a name with the base model.

    Where one field can name either, over HTTP and in the Open Inference Protocol, it means the
    base. It is no error: otherwise a tenant's adapter of that name would prevent the next start.
    """

    def __init__(self, names: Collection[str]) -> None:
        """Look for adapters with these `names`."""
        self._names = frozenset(names)

    def look_at(self, records: Iterable[AdapterRecord]) -> None:
        """Log a warning for each of `records` that has one of the names."""
        for record in records:
            in_full = f"{record.tenant}/{record.name}"
            instead = in_full if in_full not in self._names else f"{in_full}:{record.version}"
            for name in self._names.intersection((record.name, in_full)):
                _log.warning(
                    "the base model and an adapter of tenant %s are both named %s: in a request, "
                    "this name means the base model, and %s the adapter",
                    record.tenant, name, instead,
                )  # fmt: skip
