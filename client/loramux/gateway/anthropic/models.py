"""Models in the form of Anthropic's API."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def listed(models: Mapping[str, Any]) -> dict[str, object]:
    """Convert OpenAI's list of models to Anthropic's, as a single page."""
    found = [as_model(model) for model in models["data"]]
    return {
        "data": found,
        "has_more": False,
        "first_id": found[0]["id"],
        "last_id": found[-1]["id"],
    }


def as_model(model: Mapping[str, Any]) -> dict[str, object]:
    """Convert OpenAI's model object to Anthropic's."""
    return {
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": datetime.fromtimestamp(model["created"], UTC).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": model["max_model_len"],
    }
