"""How many completions a request may have."""

from dataclasses import dataclass
from typing import Self

from loramux.v1 import generation_pb2
from loramux_server.config import ServerConfig
from loramux_server.field_errors import invalid, wrong
from loramux_server.services.context_room import is_empty
from loramux_server.services.generation.prepared import Prepared
from loramux_server.wire.model_info import ModelInfo

_ALWAYS = 8
"""So many there may be whatever the prompt is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionLimits:
    """What is too many.

    The engine gets a copy of the prompt and its images for each completion. As long as a request
    waits alone the waiting room lets it have any number of them, so that they are limited here.
    """

    most: int
    """Completions."""
    most_tokens: int
    """Of prompts, where there are more than eight."""
    most_bytes: int
    """Of images, likewise."""

    @classmethod
    def of(cls, config: ServerConfig, model: ModelInfo) -> Self:
        """Return those of a server: never more than may run and wait in it together."""
        return cls(
            most=min(config.max_completions, model.max_running + config.max_waiting),
            most_tokens=max(_ALWAYS * model.context_length, config.max_waiting_tokens),
            most_bytes=config.max_waiting_bytes,
        )

    def check(self, params: generation_pb2.SamplingParams) -> None:
        """Demand that there may be as many completions as `params` say.

        Raises:
            InvalidArgumentError: There may not.
        """
        most = 1 if is_empty(params) else self.most
        if params.HasField("n") and not 1 <= params.n <= most:
            raise invalid("sampling.n", params.n, f"an integer from 1 to {most}")

    def check_copies(self, num_completions: int, prepared: Prepared) -> None:
        """Demand that the prompt is small enough for so many completions.

        Raises:
            InvalidArgumentError: It is not; the message tells for how many it would be.
        """
        if num_completions <= _ALWAYS:
            return
        num_bytes = sum(image.image.num_bytes for image in prepared.images)
        for size, most, what in (
            (len(prepared.prompt), self.most_tokens, "tokens of its prompt"),
            (num_bytes, self.most_bytes, "bytes of its images"),
        ):
            if num_completions * size > most:
                raise wrong(
                    "sampling.n",
                    f"is {num_completions}; with {size} {what} for each completion, of which a "
                    f"request may have {most}, expected at most {max(_ALWAYS, most // size)}",
                )
