"""`loramux generate`."""

import dataclasses
import json
import sys
from typing import Annotated, cast

import typer

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.sampling import (
    AdapterOption,
    Beams,
    Choice,
    CombinationOption,
    DecoderPrompt,
    EarlyStopping,
    JsonSchema,
    LengthPenalty,
    MaxTokens,
    ParseSpecial,
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
from loramux.types import GenerationOptions


def generate(
    prompt: Annotated[str, typer.Argument(help="Prompt text; - reads it from stdin.")],
    adapter: AdapterOption = None,
    scale: Scale = None,
    combination: CombinationOption = None,
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
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    early_stopping: EarlyStopping = None,
    decoder_prompt: DecoderPrompt = None,
    parse_special_tokens: ParseSpecial = False,
    priority: Priority = 0,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Generate text from a prompt and print it as it streams.

    A decoder continues the prompt; an encoder-decoder writes a new text from it.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
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
        num_beams=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    options = cast(GenerationOptions, dict(sampling))
    if decoder_prompt is not None:
        options["decoder_prompt"] = decoder_prompt
    chosen = adapter_options(adapter, scale, combination)
    with Client(server) as client:
        if as_json:
            answer = client.generate(
                prompt, routing_key=routing_key, parse_special_tokens=parse_special_tokens,
                priority=priority, **chosen, **options,
            )  # fmt: skip
            print(json.dumps(dataclasses.asdict(answer)))
            return
        chunks = client.stream(
            prompt, routing_key=routing_key, parse_special_tokens=parse_special_tokens,
            priority=priority, **chosen, **options,
        )  # fmt: skip
        for chunk in chunks:
            print(chunk.text, end="", flush=True)
        print()
