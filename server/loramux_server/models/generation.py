"""Default sampling parameters of a base model: its generation config."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from loramux_adapters import PackageError
from loramux_adapters.generation_config import FILE, base_defaults_of
from loramux_server.models.servable import UnservableModelError

AUTO = "auto"
"""The generation config in the model's folder; old models have it in `config.json`."""
NONE = ("none", "vllm")
"""No generation config: sample at temperature 1. vLLM's name for it is accepted, too."""
_MAX_BYTES = 64 << 10

_log = logging.getLogger(__name__)


def generation_of(module: PreTrainedModel, source: str) -> dict[str, int | float]:
    """Return the default sampling parameters of `module` from `source`, by name.

    Fields that would change results but are not applied are logged.

    Args:
        module: The model, as transformers loaded it.
        source: `AUTO`, one of `NONE`, or a folder with a `generation_config.json`.

    Raises:
        UnservableModelError: There is no such file, or a field has an invalid value.
    """
    if source in NONE:
        return {}
    config = module.generation_config.to_diff_dict() if source == AUTO else _read(Path(source))
    try:
        defaults, left_out = base_defaults_of(config)
    except PackageError as error:
        raise UnservableModelError(
            f"{error}; fix the file, or start with --generation-config none"
        ) from None
    if left_out:
        _log.warning("%s: not applied: %s", FILE, ", ".join(left_out))
    return cast(dict[str, int | float], defaults)


def _read(folder: Path) -> Mapping[str, object]:
    try:
        with (folder / FILE).open("rb") as file:
            config = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError) as error:
        raise UnservableModelError(
            f"--generation-config is {str(folder)!r}; expected auto, none, or a folder with a "
            f"{FILE}: {error}"
        ) from None
    if not isinstance(config, dict):
        raise UnservableModelError(f"{folder / FILE} is not a JSON object")
    return config
