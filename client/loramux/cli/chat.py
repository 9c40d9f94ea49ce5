"""`loramux chat`."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.sampling import (
    AdapterOption,
    AdapterOptions,
    Choice,
    CombinationOption,
    JsonSchema,
    MaxTokens,
    Priority,
    Regex,
    RoutingKey,
    Scale,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    adapter_options,
    sampling_options,
)
from loramux.client import Client
from loramux.errors import InvalidArgumentError
from loramux.types import ContentPart, Image, Message, SamplingOptions

_HELP = (
    "/image FILE attaches an image to your next message, /clear starts over, /exit or Ctrl-D "
    "quits, Ctrl-C stops the reply"
)


class Conversation:
    """The messages so far, and how the next reply is requested."""

    def __init__(
        self,
        client: Client,
        *,
        chosen: AdapterOptions,
        routing_key: str,
        priority: int,
        system: str,
        sampling: SamplingOptions,
    ) -> None:
        self._client = client
        self._chosen = chosen
        self._routing_key = routing_key
        self._priority = priority
        self._sampling = sampling
        self._start: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._start)

    def clear(self) -> None:
        """Drop all messages except the system message."""
        self.messages = list(self._start)

    def say(self, text: str, console: Console, images: Sequence[Image] = ()) -> None:
        """Print the reply to `text` as it streams, and append both to the conversation.

        A reply that the user interrupts is kept as far as it came. A turn that fails is dropped.

        Args:
            text: The user's message.
            console: Where to print.
            images: Images of the message, before the text.
        """
        content: str | list[ContentPart] = [*images, text] if images else text
        asked: list[Message] = [*self.messages, {"role": "user", "content": content}]
        answer: list[str] = []
        chunks = self._client.stream(
            messages=asked,
            routing_key=self._routing_key,
            priority=self._priority,
            **self._chosen,
            **self._sampling,
        )
        with contextlib.suppress(KeyboardInterrupt):
            for chunk in chunks:
                answer.append(chunk.text)
                console.print(
                    chunk.reasoning, end="", style="dim", markup=False, emoji=False, highlight=False
                )
                console.out(chunk.text, end="", highlight=False)
        console.out()
        self.messages = [*asked, {"role": "assistant", "content": "".join(answer)}]


def chat(
    message: Annotated[
        str | None,
        typer.Argument(help="First message; with --once, - or none reads it from stdin."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Image to put before the first message; repeatable. Attach later ones "
            "with /image FILE.",
        ),
    ] = None,
    adapter: AdapterOption = None,
    scale: Scale = None,
    combination: CombinationOption = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    once: Annotated[
        bool, typer.Option("--once", help="Print the reply to one message and exit.")
    ] = False,
    routing_key: RoutingKey = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choice = None,
    priority: Priority = 0,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Chat with the base model or an adapter.

    --json prints the reply to one message, as --once does.
    """
    sampling = sampling_options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop,
        json_schema=json_schema,
        regex=regex,
        choice=choice,
    )
    paths = image or []
    images = [Image.from_file(path) for path in paths]
    with Client(server) as client:
        conversation = Conversation(
            client,
            chosen=adapter_options(adapter, scale, combination),
            routing_key=routing_key,
            priority=priority,
            system=system,
            sampling=sampling,
        )
        if once or as_json:
            text = sys.stdin.read() if message in (None, "-") else str(message)
            conversation.say(text, Console(quiet=as_json), images)
            if as_json:
                print(json.dumps({"messages": _shown(conversation.messages, paths)}))
            return
        _interact(conversation, message, images)


def _shown(messages: Sequence[Message], paths: Sequence[Path]) -> list[dict[str, object]]:
    """Return `messages` for JSON, with images as the paths of their files."""
    left = iter(paths)

    def shown(content: str | Sequence[ContentPart]) -> object:
        if isinstance(content, str):
            return content
        return [
            {"type": "image", "path": str(next(left))}
            if isinstance(part, Image)
            else {"type": "text", "text": part}
            for part in content
        ]

    return [{**message, "content": shown(message["content"])} for message in messages]


def _interact(conversation: Conversation, first: str | None, images: Sequence[Image]) -> None:
    console = Console()
    console.print(_HELP, style="dim", highlight=False)
    text = first
    while True:
        if text is None:
            try:
                text = console.input("[bold]you[/] ").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
        if text == "/exit":
            return
        command, _, path = text.partition(" ")
        try:
            if text == "/clear":
                conversation.clear()
                images = ()
            elif command == "/image":
                images = (*images, Image.from_file(path.strip()))
            elif text:
                # Images that the server refuses are not sent again.
                shown, images = images, ()
                conversation.say(text, console, shown)
        except (InvalidArgumentError, OSError) as error:  # such as a conversation that is too long
            console.print(
                f"loramux: {error}", style="red", markup=False, emoji=False, highlight=False
            )
        text = None
