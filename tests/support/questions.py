"""What the pipeline `question-answering` of transformers gives; version 5 has its arithmetic alone.

That is in the pipeline for documents. Around it stands what `QuestionAnsweringPipeline` of version
4 does: how it asks the tokenizer for windows, which tokens can be an answer, and how it adds up
what the windows give.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.pipelines.document_question_answering import select_starts_ends


@dataclass(frozen=True)
class Found:
    """An answer of the pipeline."""

    score: float
    begin: int
    end: int
    text: str


def pipeline_answers(
    logits: Callable[[Sequence[int]], torch.Tensor],
    tokenizer: Any,
    question: str,
    context: str,
    *,
    top_k: int = 1,
    max_answer_tokens: int = 15,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
    context_first: bool = False,
    max_window_tokens: int | None = None,
    window_overlap_tokens: int | None = None,
) -> list[Found]:
    """Return the best answers; `logits` gives those of a window, [tokens, 2].

    Where "no answer" may be one, the first token is what a `cls_token` is to the pipeline.
    """
    window: dict[str, Any] = {}
    if max_window_tokens is not None:
        window = {
            "truncation": "only_first" if context_first else "only_second",
            "max_length": max_window_tokens, "return_overflowing_tokens": True,
            "stride": (min(max_window_tokens // 2, 128) if window_overlap_tokens is None
                       else window_overlap_tokens),
        }  # fmt: skip
    pair = (context, question) if context_first else (question, context)
    own = 0 if context_first else 1
    encoded = tokenizer(*pair, **window)
    found: dict[str, dict[str, Any]] = {}
    none_score = 1e6
    for each in encoded.encodings:
        p_mask = np.array([sequence != own for sequence in each.sequence_ids])
        if handle_impossible_answer:
            p_mask[0] = False
        start_end = logits(each.ids).double().numpy()
        starts, ends, scores, none_score = select_starts_ends(
            start_end[None, :, 0], start_end[None, :, 1], p_mask, np.array([each.attention_mask]),
            none_score, top_k, handle_impossible_answer, max_answer_tokens,
        )  # fmt: skip
        for start, end, score in zip(starts.tolist(), ends.tolist(), scores.tolist(), strict=True):
            begin, stop = each.offsets[start][0], each.offsets[end][1]
            if align_to_words:
                begin = each.word_to_chars(each.token_to_word(start), own)[0]
                stop = each.word_to_chars(each.token_to_word(end), own)[1]
            if not score:  # an end before its begin, where there are no better ones
                continue
            text = context[begin:stop]
            same = found.setdefault(
                text.lower(), {"score": 0.0, "begin": begin, "end": stop, "text": text}
            )
            same["score"] += score
    answers = [Found(**each) for each in found.values()]
    if handle_impossible_answer:
        answers.append(Found(none_score, 0, 0, ""))
    return sorted(answers, key=lambda answer: -answer.score)[:top_k]
