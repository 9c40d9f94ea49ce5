"""What a caller is told of the logits of labels, and how much of it fits a request."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from loramux.errors import InvalidArgumentError
from loramux_adapters.head import Task
from loramux_adapters.labels import Labels, ProblemType
from loramux_server.services.pooling.classification_limits import MAX_NUMBERS, check_sizes
from loramux_server.services.pooling.scoring import Scoring, scores
from loramux_server.services.texts import Text
from loramux_server.text.tokenizer import TextTokenizer
from tests.support.models import byte_tokenizer

LOGITS = np.array([[2.0, -1.0, 0.5], [300.0, -300.0, 300.0]], np.float32)
MODEL = cast(Any, SimpleNamespace(context_length=1 << 20))


def scoring(task: Task, *, top_k: int | None = None, num_labels: int = 3) -> Scoring:
    labels = Labels(tuple(f"{i}" for i in range(num_labels)), ProblemType.SINGLE_LABEL)
    return Scoring(task, labels, top_k, returns_logits=False)


@pytest.mark.parametrize("problem", ProblemType)
def test_scores_are_those_of_torch_however_large_logits_are(problem: ProblemType) -> None:
    logits = torch.from_numpy(LOGITS).double()
    wanted = {
        ProblemType.SINGLE_LABEL: logits.softmax(-1),
        ProblemType.MULTI_LABEL: logits.sigmoid(),
        ProblemType.REGRESSION: logits,
    }[problem]
    with np.errstate(all="raise", under="ignore"):
        found = scores(LOGITS, problem)
    torch.testing.assert_close(torch.from_numpy(found), wanted)


def test_of_equal_scores_the_first_label_comes_first() -> None:
    text = Text([5, 6], [None, (0, 1)])
    result = scoring(Task.TOKENS, top_k=2).result(text, LOGITS.tobytes())
    assert [[label.index for label in token.labels] for token in result.tokens] == [[0, 2], [0, 2]]
    assert [token.HasField("begin") for token in result.tokens] == [False, True]
    one = scoring(Task.TOKENS).result(text, LOGITS.tobytes())
    assert [len(token.labels) for token in one.tokens] == [1, 1]
    all_labels = scoring(Task.SEQUENCE).result(text, LOGITS[:1].tobytes())
    assert [label.index for label in all_labels.labels] == [0, 2, 1]
    assert not all_labels.tokens


def test_what_is_returned_about_tokens_is_bounded() -> None:
    fitting = MAX_NUMBERS // 1024
    check_sizes([fitting - 5, 5], scoring(Task.TOKENS, num_labels=1024), MODEL)
    check_sizes([fitting + 1], scoring(Task.SEQUENCE, num_labels=1024), MODEL)
    with pytest.raises(InvalidArgumentError, match=f"at most {fitting} tokens") as caught:
        check_sizes([fitting - 5, 6], scoring(Task.TOKENS, num_labels=1024), MODEL)
    assert caught.value.field == "inputs"


def test_tokens_of_no_text_have_no_place() -> None:
    tokenizer = TextTokenizer(byte_tokenizer().backend_tokenizer.to_str())
    tokens, places = tokenizer.encode_placed("a🙂 b", "text", parse_special=False, add_special=True)
    assert places == [None, (0, 1), *[(1, 2)] * 4, (2, 3), (3, 4)]
    assert tokens == tokenizer.encode("a🙂 b", parse_special=False, add_special=True)
    # A control token that the text itself brings is of the text.
    _, places = tokenizer.encode_placed("</s>a", "text", parse_special=True, add_special=False)
    assert places == [(0, 4), (4, 5)]
    _, places = tokenizer.encode_placed("</s>a", "text", parse_special=True, add_special=True)
    assert places == [None, (0, 4), (4, 5)]
