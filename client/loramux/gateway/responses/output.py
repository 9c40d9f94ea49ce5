"""The output of a response, built from the chunks of the server's stream."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from loramux.gateway.responses.text_tokens import TextTokens
from loramux.gateway.responses.written import Message, Thought, Written, call_item
from loramux.gateway.styles import Object
from loramux.v1 import generation_pb2

Event = tuple[str, Object]
"""Type and fields."""


@dataclass(slots=True)
class Output:
    """Items in the order of generation."""

    items: list[Object] = field(default_factory=list)
    """Items that are done."""
    is_cut_off: bool = False
    """Whether it ended at a token limit."""
    _written: Written | None = None
    """The item in progress."""
    _tokens: TextTokens = field(default_factory=TextTokens)

    def take(self, delta: generation_pb2.Completion) -> Iterator[Event]:
        """Add `delta` and yield its events; the generator has to be exhausted."""
        logprobs = self._tokens.of(delta)
        if delta.reasoning:
            yield from self._write(Thought, delta.reasoning, [])
        if delta.text:
            yield from self._write(Message, delta.text, logprobs)
        for call in delta.tool_calls:
            yield from self._close("completed")
            yield from self._call(call_item(call))
        if delta.finish_reason:
            self.is_cut_off = delta.finish_reason == generation_pb2.FINISH_REASON_LENGTH
            if not (self.is_cut_off or self._has_said()):
                yield from self._open(Message())
            yield from self._close("incomplete" if self.is_cut_off else "completed")

    def all(self) -> list[Object]:
        """Return all items, the one in progress as incomplete."""
        written = self._written
        return self.items + ([written.item("incomplete", [written.part()])] if written else [])

    def _has_said(self) -> bool:
        """Return whether there is a message or a tool call."""
        return isinstance(self._written, Message) or any(
            item["type"] != "reasoning" for item in self.items
        )

    def _write(
        self, kind: type[Message | Thought], text: str, logprobs: list[Object]
    ) -> Iterator[Event]:
        if not isinstance(self._written, kind):
            yield from self._close("completed")
            yield from self._open(kind())
        written = self._written
        assert written is not None
        told = written.add(text, logprobs)
        yield f"response.{written.kind}.delta", self._at(written) | told

    def _open(self, written: Message | Thought) -> Iterator[Event]:
        self._written = written
        item = written.item("in_progress", [])
        yield "response.output_item.added", {"output_index": len(self.items), "item": item}
        yield "response.content_part.added", self._at(written) | {"part": written.part()}

    def _close(self, status: str) -> Iterator[Event]:
        """Finish the item in progress, if there is one."""
        written = self._written
        if written is None:
            return
        self._written = None
        place, part = self._at(written), written.part()
        yield f"response.{written.kind}.done", place | written.whole()
        yield "response.content_part.done", place | {"part": part}
        yield from self._end(written.item(status, [part]))

    def _call(self, item: Object) -> Iterator[Event]:
        """Add a call, which the server sends once it is complete."""
        begun = item | {"status": "in_progress", "arguments": ""}
        place: Object = {"output_index": len(self.items), "item_id": item["id"]}
        yield "response.output_item.added", {"output_index": len(self.items), "item": begun}
        arguments, done = item["arguments"], "response.function_call_arguments.done"
        yield "response.function_call_arguments.delta", place | {"delta": arguments}
        yield done, place | {"name": item["name"], "arguments": arguments}
        yield from self._end(item)

    def _end(self, item: Object) -> Iterator[Event]:
        index = len(self.items)
        self.items.append(item)
        yield "response.output_item.done", {"output_index": index, "item": item}

    def _at(self, written: Written) -> Object:
        return {"output_index": len(self.items), "item_id": written.id, "content_index": 0}
