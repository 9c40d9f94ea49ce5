"""Label scores from logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loramux.v1 import classification_pb2
from loramux_adapters.head import Task
from loramux_adapters.labels import Labels, ProblemType
from loramux_server.services.texts import Text

PROBLEMS = {
    ProblemType.SINGLE_LABEL: classification_pb2.PROBLEM_TYPE_SINGLE_LABEL,
    ProblemType.MULTI_LABEL: classification_pb2.PROBLEM_TYPE_MULTI_LABEL,
    ProblemType.REGRESSION: classification_pb2.PROBLEM_TYPE_REGRESSION,
}
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How logits are turned into results."""

    task: Task
    labels: Labels
    top_k: int | None
    """Labels per text or token; None for all labels of a text, or one per token."""
    returns_logits: bool

    def result(self, text: Text, logits: bytes) -> classification_pb2.Classification:
        """Return the classification of `text` by its float32 `logits`: [1 or tokens, labels]."""
        each = np.frombuffer(logits, np.float32).reshape(-1, len(self.labels.names))
        likely = scores(each, self.labels.problem)
        if self.task is Task.SEQUENCE:
            (best,) = self._best(likely)
            return classification_pb2.Classification(
                labels=best, logits=each[0].tolist() if self.returns_logits else ()
            )
        found = zip(text.tokens, text.places, each, self._best(likely), strict=True)
        return classification_pb2.Classification(
            tokens=[
                classification_pb2.TokenLabels(
                    token_id=token,
                    begin=place[0] if place else None,
                    end=place[1] if place else None,
                    labels=best,
                    logits=row.tolist() if self.returns_logits else (),
                )
                for token, place, row, best in found
            ]
        )

    def _best(self, scores: Float64) -> list[Sequence[classification_pb2.LabelScore]]:
        """Return the top labels of each row, highest score first."""
        most = self.top_k or (1 if self.task is Task.TOKENS else None)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :most]
        return [
            [
                classification_pb2.LabelScore(
                    index=index, label=self.labels.names[index], score=row[index]
                )
                for index in indices.tolist()
            ]
            for indices, row in zip(order, scores, strict=True)
        ]


def scores(logits: Float32, problem: ProblemType) -> Float64:
    """Return softmax, sigmoid or identity of `logits`, [rows, labels], depending on `problem`."""
    wide: Float64 = logits.astype(np.float64)
    if problem is ProblemType.REGRESSION:
        return wide
    if problem is ProblemType.MULTI_LABEL:
        likely: Float64 = np.exp(-np.logaddexp(0.0, -wide))
        return likely
    power = np.exp(wide - wide.max(axis=1, keepdims=True))
    part: Float64 = power / power.sum(axis=1, keepdims=True)
    return part
