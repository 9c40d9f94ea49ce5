"""The output of a response, built from the chunks of the server's stream."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from loramux.gateway.responses.open_items import Message, OpenItem, Thought, call_item
from loramux.gateway.responses.text_tokens import TextTokens
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
    _open_item: OpenItem | None = None
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
            if not (self.is_cut_off or self._has_output()):
                yield from self._open(Message())
            yield from self._close("incomplete" if self.is_cut_off else "completed")

    def all(self) -> list[Object]:
        """Return all items, the one in progress as incomplete."""
        open_item = self._open_item
        return self.items + (
            [open_item.item("incomplete", [open_item.part()])] if open_item else []
        )

    def _has_output(self) -> bool:
        """Return whether there is a message or a tool call."""
        return isinstance(self._open_item, Message) or any(
            item["type"] != "reasoning" for item in self.items
        )

    def _write(
        self, kind: type[Message | Thought], text: str, logprobs: list[Object]
    ) -> Iterator[Event]:
        if not isinstance(self._open_item, kind):
            yield from self._close("completed")
            yield from self._open(kind())
        open_item = self._open_item
        assert open_item is not None
        fields = open_item.add(text, logprobs)
        yield f"response.{open_item.kind}.delta", self._at(open_item) | fields

    def _open(self, open_item: Message | Thought) -> Iterator[Event]:
        self._open_item = open_item
        item = open_item.item("in_progress", [])
        yield "response.output_item.added", {"output_index": len(self.items), "item": item}
        yield "response.content_part.added", self._at(open_item) | {"part": open_item.part()}

    def _close(self, status: str) -> Iterator[Event]:
        """Finish the item in progress, if there is one."""
        open_item = self._open_item
        if open_item is None:
            return
        self._open_item = None
        place, part = self._at(open_item), open_item.part()
        yield f"response.{open_item.kind}.done", place | open_item.whole()
        yield "response.content_part.done", place | {"part": part}
        yield from self._end(open_item.item(status, [part]))

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

    def _at(self, open_item: OpenItem) -> Object:
        return {"output_index": len(self.items), "item_id": open_item.id, "content_index": 0}
