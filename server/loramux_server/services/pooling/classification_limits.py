"""Validation of classification requests."""

from collections.abc import Sequence

from loramux.v1 import classification_pb2
from loramux_adapters.head import Task
from loramux_server.field_errors import invalid, wrong
from loramux_server.services.limits import check_names
from loramux_server.services.pooling.input_limits import check_inputs, check_lengths, is_pair
from loramux_server.services.pooling.scoring import Scoring
from loramux_server.store.reference import parse_reference
from loramux_server.wire.model_info import ModelInfo

MAX_NUMBERS = 1 << 20
"""Maximum labels times tokens of a token classification request."""


def check_request(request: classification_pb2.ClassifyRequest, model: ModelInfo) -> None:
    """Check the fields of `request` against limits that do not depend on the adapter.

    Raises:
        InvalidArgumentError: One is invalid; the message names it, its value and what would be
            right.
    """
    if not request.adapter:
        raise invalid("adapter", "", "a reference: the base model has no classification head")
    parse_reference(request.adapter, "adapter")
    check_names(request.request_id, request.routing_key)
    check_inputs(request.inputs, model)


def check_pairs(request: classification_pb2.ClassifyRequest, task: Task) -> None:
    """Check that an adapter of `task` supports the inputs of a checked request.

    Raises:
        InvalidArgumentError: One is a text pair, and the adapter labels tokens.
    """
    if task is not Task.TOKENS:
        return
    for index, each in enumerate(request.inputs):
        if is_pair(each):
            raise wrong(
                f"inputs[{index}].text_pair",
                f"is set, but {request.adapter} labels the tokens of one text (task TOKEN_CLS); "
                "text pairs require an adapter that labels texts (task SEQ_CLS)",
            )


def check_sizes(
    lengths: Sequence[int], scoring: Scoring, model: ModelInfo, num_virtual: int = 0
) -> None:
    """Check that texts of these `lengths` fit the context, and their scores a message.

    An adapter puts `num_virtual` tokens before each text.

    Raises:
        InvalidArgumentError: They do not.
    """
    check_lengths(lengths, model, num_virtual)
    num_labels = len(scoring.labels.names)
    if scoring.task is Task.TOKENS and sum(lengths) * num_labels > MAX_NUMBERS:
        raise wrong(
            "inputs",
            f"has {sum(lengths)} tokens with {num_labels} labels each; expected at most "
            f"{MAX_NUMBERS // num_labels} tokens in one request",
        )
