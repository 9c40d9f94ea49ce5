"""EmbeddingService: embedding vectors of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loramux.errors import FailedPreconditionError
from loramux.v1 import embedding_pb2
from loramux_adapters.embedding import Pooling, embedding_of
from loramux_server.field_errors import invalid
from loramux_server.services.gen_ai import EMBED
from loramux_server.services.limits import check_names
from loramux_server.services.pooling.call import PoolingCall
from loramux_server.services.pooling.input_limits import check_inputs, check_lengths
from loramux_server.services.pooling.runner import PoolingRunner, postprocess
from loramux_server.services.tasks import check_embeds
from loramux_server.services.texts import Text
from loramux_server.store.reference import parse_reference
from loramux_server.transport.rpc import Context
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.model_kind import ModelKind

_POOLINGS = {
    embedding_pb2.POOLING_LAST: Pooling.LAST,
    embedding_pb2.POOLING_MEAN: Pooling.MEAN,
    embedding_pb2.POOLING_FIRST: Pooling.FIRST,
}
_POOLING_VALUES = {pooling: value for value, pooling in _POOLINGS.items()}


class EmbeddingService:
    """Implements `loramux.v1.EmbeddingService`."""

    descriptor = embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"]

    def __init__(self, runner: PoolingRunner) -> None:
        self._runner = runner

    async def Embed(
        self, request: embedding_pb2.EmbedRequest, context: Context
    ) -> embedding_pb2.EmbedResponse:
        """Answer once every text has its vector."""
        async with self._runner.opened(request, context, check_request, check_embeds) as call:
            vectors = Vectors.of(request, call.settings.embedding, self._runner.model)
            texts = await self._runner.inputs(request, call)
            lengths = [len(text.tokens) for text in texts]
            check_lengths(lengths, self._runner.model, call.num_virtual)
            pooling = vectors.pooling
            if pooling is Pooling.FIRST and self._runner.model.kind is ModelKind.DECODER:
                _check_first(call)
                # In a decoder, later tokens do not change the first state, so they are not read.
                texts = [Text(text.tokens[:1], text.places[:1]) for text in texts]
                pooling = Pooling.LAST
            found = await self._runner.run(call, EMBED, texts, pooling)
            response = embedding_pb2.EmbedResponse(
                request_id=call.request_id,
                adapter=call.identity,
                embeddings=await postprocess(found, lambda: vectors.made_of(found)),
                pooling=_POOLING_VALUES[vectors.pooling],
                is_normalized=vectors.normalize,
                timing=call.observer.timing(),
            )
            response.usage.prompt_tokens = sum(len(text.tokens) for text in texts)
            response.usage.cached_tokens = call.observer.cached_tokens(is_shared=False)
            return response


def _check_first(call: PoolingCall) -> None:
    """Check that a decoder's state at the first position depends on the text.

    Raises:
        FailedPreconditionError: It does not: the adapter's virtual tokens come first.
    """
    if call.num_virtual and not (call.source and call.source.has_cache):
        raise FailedPreconditionError(
            f"pooling is 'first', but {call.adapter} puts virtual tokens before a text, of "
            "which the first is the same for all texts; use 'last' or 'mean'",
            reason="INVALID_FIELD",
            field="pooling",
        )


@dataclass(frozen=True, slots=True)
class Vectors:
    """What kind of vectors are asked for."""

    pooling: Pooling
    normalize: bool
    dimensions: int | None
    """How many leading dimensions are kept; None for all."""

    @staticmethod
    def of(
        request: embedding_pb2.EmbedRequest, note: Mapping[str, object], model: ModelInfo
    ) -> "Vectors":
        """Return what a checked request asks for; `note` has the settings of its adapter's package.

        Raises:
            FailedPreconditionError: Neither says how to pool, and the pooling of the base model's
                folder is not supported.
        """
        is_said = request.pooling != embedding_pb2.POOLING_UNSPECIFIED or "pooling" in note
        if model.embedding_fault and not is_said:
            raise FailedPreconditionError(
                f"the pooling of the base model is not supported: {model.embedding_fault}; set "
                "pooling to use another",
                reason="INVALID_FIELD",
                field="pooling",
            )
        default = embedding_of(note, model.embedding)
        return Vectors(
            _POOLINGS.get(request.pooling, default.pooling),
            request.normalize if request.HasField("normalize") else default.normalize,
            request.dimensions if request.HasField("dimensions") else None,
        )

    def made_of(self, states: Sequence[bytes]) -> list[embedding_pb2.Embedding]:
        """Return the vectors of hidden `states`, each float32."""
        found = []
        for each in states:
            values = np.frombuffer(each, np.float32)[: self.dimensions].astype(np.float64)
            if self.normalize:
                values /= max(float(np.linalg.norm(values)), 1e-12)
            found.append(embedding_pb2.Embedding(values=values.astype(np.float32)))
        return found


def check_request(request: embedding_pb2.EmbedRequest, model: ModelInfo) -> None:
    """Check the fields of `request` against limits that do not depend on the adapter.

    Raises:
        InvalidArgumentError: One is invalid; the message names it, its value and what would be
            right.
    """
    if request.adapter:
        parse_reference(request.adapter, "adapter")
    check_names(request.request_id, request.routing_key)
    if request.pooling != embedding_pb2.POOLING_UNSPECIFIED and request.pooling not in _POOLINGS:
        known = ", ".join(str(value) for value in _POOLINGS)
        raise invalid("pooling", request.pooling, f"a value of Pooling, {known}")
    width = model.embedding_width
    if request.HasField("dimensions") and not 1 <= request.dimensions <= width:
        right = f"1 to {width}, the width of a hidden state"
        raise invalid("dimensions", request.dimensions, right)
    check_inputs(request.inputs, model)
