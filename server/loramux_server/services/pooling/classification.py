"""ClassificationService: labels of texts or of their tokens, by the head of an adapter."""

from loramux.errors import DataLossError
from loramux.v1 import classification_pb2
from loramux_server.field_errors import invalid
from loramux_server.services.gen_ai import CLASSIFY
from loramux_server.services.pooling.classification_limits import (
    check_pairs,
    check_request,
    check_sizes,
)
from loramux_server.services.pooling.runner import PoolingRunner, postprocess
from loramux_server.services.pooling.scoring import PROBLEMS, Scoring
from loramux_server.services.tasks import check_classifies
from loramux_server.store.package_settings import PackageSettings
from loramux_server.transport.rpc import Context
from loramux_server.wire.adapter_source import AdapterSource


class ClassificationService:
    """Implements `loramux.v1.ClassificationService`."""

    descriptor = classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"]

    def __init__(self, runner: PoolingRunner) -> None:
        self._runner = runner

    async def Classify(
        self, request: classification_pb2.ClassifyRequest, context: Context
    ) -> classification_pb2.ClassifyResponse:
        """Answer once every text is classified."""
        opened = self._runner.opened(request, context, check_request, check_classifies)
        async with opened as call:
            scoring = _scoring(request, call.source, call.settings)
            check_pairs(request, scoring.task)
            texts = await self._runner.inputs(request, call)
            lengths = [len(text.tokens) for text in texts]
            check_sizes(lengths, scoring, self._runner.model, call.num_virtual)
            found = await self._runner.run(call, CLASSIFY, texts)
            results = await postprocess(
                found,
                lambda: [
                    scoring.result(text, each) for text, each in zip(texts, found, strict=True)
                ],
            )
            response = classification_pb2.ClassifyResponse(
                request_id=call.request_id,
                adapter=call.identity,
                problem_type=PROBLEMS[scoring.labels.problem],
                labels=scoring.labels.names,
                results=results,
                timing=call.observer.timing(),
            )
            response.usage.prompt_tokens = sum(len(text.tokens) for text in texts)
            response.usage.cached_tokens = call.observer.cached_tokens(is_shared=False)
            return response


def _scoring(
    request: classification_pb2.ClassifyRequest,
    source: AdapterSource | None,
    settings: PackageSettings,
) -> Scoring:
    """Return how logits are turned into results.

    Raises:
        InvalidArgumentError: There are fewer labels than asked for.
        DataLossError: The package cannot be read.
    """
    if settings.labels is None or source is None or source.task is None:
        raise DataLossError(
            "the stored adapter cannot be read, so its labels are not known",
            reason="ADAPTER_DAMAGED",
            field="adapter",
        )
    most = len(settings.labels.names)
    top_k = request.top_k if request.HasField("top_k") else None
    if top_k is not None and not 1 <= top_k <= most:
        raise invalid("top_k", top_k, f"1 to {most}, as many labels as the adapter has")
    return Scoring(source.task, settings.labels, top_k, request.return_logits)
