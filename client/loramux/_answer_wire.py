"""Question answering: conversion to and from protobuf messages, for both clients."""

from collections.abc import Sequence

from loramux import _wire
from loramux._answer_types import Answer, Answers, QuestionAnswering
from loramux._fitting import fitting
from loramux.errors import InvalidArgumentError
from loramux.v1 import question_answering_pb2


def answer_request(
    question: str | Sequence[str],
    context: str | Sequence[str],
    adapter: str,
    top_k: int,
    max_answer_tokens: int,
    handle_impossible_answer: bool,
    align_to_words: bool,
    context_first: bool,
    max_window_tokens: int | None,
    window_overlap_tokens: int | None,
    request_id: str,
    routing_key: str,
    priority: int,
    parse_special_tokens: bool,
    add_special_tokens: bool,
    token_types: bool,
) -> question_answering_pb2.AnswerRequest:
    """Return the request.

    Raises:
        InvalidArgumentError: A value does not fit its field, or the numbers of contexts and
            questions differ.
    """
    request = question_answering_pb2.AnswerRequest(
        handle_impossible_answer=handle_impossible_answer,
        align_to_words=align_to_words,
        context_first=context_first,
        parse_special_tokens=parse_special_tokens,
        add_special_tokens=add_special_tokens,
        token_types=token_types,
    )
    with fitting("adapter"):
        request.adapter = adapter
    with fitting("request_id"):
        request.request_id = request_id
    with fitting("routing_key"):
        request.routing_key = routing_key
    with fitting("priority"):
        request.priority = priority
    numbers = {
        "top_k": top_k,
        "max_answer_tokens": max_answer_tokens,
        "max_window_tokens": max_window_tokens,
        "window_overlap_tokens": window_overlap_tokens,
    }
    for name, number in numbers.items():
        if number is not None:
            with fitting(name):
                setattr(request, name, number)
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(questions) != len(contexts):
        raise InvalidArgumentError(
            f"there are {len(questions)} questions and {len(contexts)} contexts; give one context "
            "for each, or one for all",
            reason="INVALID_FIELD",
            field="inputs",
        )
    for index, (each, text) in enumerate(zip(questions, contexts, strict=True)):
        with fitting(f"inputs[{index}]"):
            request.inputs.add(question=each, context=text)
    return request


def question_answering(response: question_answering_pb2.AnswerResponse) -> QuestionAnswering:
    """Convert a response."""
    return QuestionAnswering(
        request_id=response.request_id,
        adapter=_wire.identity(response.adapter),
        results=tuple(map(_answers, response.results)),
        usage=_wire.usage(response.usage),
        timing=_wire.timing(response.timing),
    )


def _answers(message: question_answering_pb2.Answers) -> Answers:
    found = (
        Answer(each.score, each.begin, each.end, each.text, each.is_impossible)
        for each in message.answers
    )
    return Answers(tuple(found), message.num_windows)
