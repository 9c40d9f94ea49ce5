"""`loramux chat`."""

import contextlib
import json
import sys
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
from loramux.types import Message, SamplingOptions

_HELP = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C ends an answer"


class Conversation:
    """What was said so far, and whom to ask for the next turn."""

    def __init__(
        self,
        client: Client,
        *,
        chosen: AdapterOptions,
        routing_key: str,
        system: str,
        sampling: SamplingOptions,
    ) -> None:
        self._client = client
        self._chosen = chosen
        self._routing_key = routing_key
        self._sampling = sampling
        self._start: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._start)

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self._start)

    def say(self, content: str, console: Console) -> None:
        """Print the answer to `content` as it comes; both are part of the conversation then.

        Of an answer that the user breaks off, what came is kept. A turn that fails is forgotten.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": content}]
        answer: list[str] = []
        chunks = self._client.stream(
            messages=asked,
            routing_key=self._routing_key,
            **self._chosen,
            **self._sampling,
        )
        with contextlib.suppress(KeyboardInterrupt):
            for chunk in chunks:
                answer.append(chunk.text)
                console.print(chunk.reasoning, end="", style="dim", markup=False, highlight=False)
                console.out(chunk.text, end="", highlight=False)
        console.out()
        self.messages = [*asked, {"role": "assistant", "content": "".join(answer)}]


def chat(
    message: Annotated[
        str | None,
        typer.Argument(help="First message; with --once, - or none reads it from stdin."),
    ] = None,
    adapter: AdapterOption = None,
    scale: Scale = None,
    combination: CombinationOption = None,
    system: Annotated[str, typer.Option(help="System message that begins the conversation.")] = "",
    once: Annotated[
        bool, typer.Option("--once", help="Print the answer to one message, and end.")
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
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Talk with the base model or an adapter, by its chat template; --json is for --once."""
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
    with Client(server) as client:
        conversation = Conversation(
            client,
            chosen=adapter_options(adapter, scale, combination),
            routing_key=routing_key,
            system=system,
            sampling=sampling,
        )
        if once or as_json:
            content = sys.stdin.read() if message in (None, "-") else str(message)
            conversation.say(content, Console(quiet=as_json))
            if as_json:
                print(json.dumps({"messages": conversation.messages}))
            return
        _talk(conversation, message)


def _talk(conversation: Conversation, first: str | None) -> None:
    console = Console()
    console.print(_HELP, style="dim", highlight=False)
    content = first
    while True:
        if content is None:
            try:
                content = console.input("[bold]you[/] ").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
        if content == "/exit":
            return
        if content == "/clear":
            conversation.clear()
        elif content:
            try:
                conversation.say(content, console)
            except InvalidArgumentError as error:  # such as a conversation that became too long
                console.print(f"loramux: {error}", style="red", markup=False, highlight=False)
        content = None
