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
"""This many are allowed whatever the prompt is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionLimits:
    """Limits on the completions of one request.

    The engine gets a copy of the prompt and its images for each completion. The waiting room admits
    a request that waits alone with any number of them, so they are limited here.
    """

    most: int
    """Maximum number of completions."""
    most_tokens: int
    """Maximum prompt tokens over all completions, if there are more than eight."""
    most_bytes: int
    """Maximum image bytes, likewise."""

    @classmethod
    def of(cls, config: ServerConfig, model: ModelInfo) -> Self:
        """Return the limits of a server: never more than can run and wait in it at once."""
        return cls(
            most=min(config.max_completions, model.max_running + config.max_waiting),
            most_tokens=max(_ALWAYS * model.context_length, config.max_waiting_tokens),
            most_bytes=config.max_waiting_bytes,
        )

    def check(self, params: generation_pb2.SamplingParams) -> None:
        """Check that `params` do not ask for too many completions.

        Raises:
            InvalidArgumentError: They do.
        """
        most = 1 if is_empty(params) else self.most
        if params.HasField("n") and not 1 <= params.n <= most:
            raise invalid("sampling.n", params.n, f"an integer from 1 to {most}")

    def check_copies(self, num_completions: int, prepared: Prepared) -> None:
        """Check that the prompt is small enough for so many completions.

        Raises:
            InvalidArgumentError: It is not; the message says how many are possible.
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
                    f"is {num_completions}; with {size} {what} for each completion and at most "
                    f"{most} per request, expected at most {max(_ALWAYS, most // size)}",
                )
