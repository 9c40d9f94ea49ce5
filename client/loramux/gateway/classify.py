"""`/classify`: vLLM's request body to the server's request, and its response back."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller
from loramux.gateway.classification import Classification, ClassificationBody
from loramux.gateway.refusal import invalid, json_response
from loramux.gateway.text_batches import Text, check_count, is_ids, name_in_input
from loramux.v1 import classification_pb2


class ClassifyBody(ClassificationBody, kw_only=True):
    """The body of a request."""

    input: object
    """Text, token ids, or a list of either or of pairs of texts."""


@dataclass(frozen=True, slots=True)
class Classifying:
    """A validated request, ready to be answered."""

    body: ClassifyBody
    inputs: Sequence[Text]
    classification: Classification

    @staticmethod
    def of(body: ClassifyBody, backend: Backend, caller: Caller, base: str) -> "Classifying":
        """Return `body` as a request to a server whose base model is called `base`.

        Raises:
            LoramuxError: A field is invalid; the error names it.
        """
        classification = Classification.of(body, backend, caller, base)
        return Classifying(body, _inputs(body.input), classification)

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        found = await self.classification.of_texts(self.inputs, self._named)
        data = [
            {
                "index": index,
                "label": result.labels[0].label,
                "probs": self._numbers(result),
                "num_classes": len(found.names),
            }
            for index, result in enumerate(found.results)
        ]
        answer = {**self.classification.head("classify"), "data": data, "usage": found.usage}
        await json_response(answer, found.headers)(scope, receive, send)

    def _named(self, place: int | None, part: str) -> str:
        return name_in_input(place, is_one=self.body.input is not self.inputs)

    def _numbers(self, result: classification_pb2.Classification) -> list[float]:
        """Return the logit or score of each label, by label index."""
        if not self.body.use_activation:
            return list(result.logits)
        return [each.score for each in sorted(result.labels, key=lambda each: each.index)]


def _inputs(given: object) -> Sequence[Text]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if is_ids(given):
            return [given]
        check_count("input", len(given))
        if all(map(_is_text, given)):
            return given
    raise invalid(
        "input",
        "input must be text, token ids, or a list of either or of pairs of texts; lists must not "
        "be empty",
    )


def _is_text(each: object) -> bool:
    if isinstance(each, str):
        return True
    is_pair = isinstance(each, list) and [type(part) for part in each] == [str, str]
    return is_pair or (bool(each) and is_ids(each))
