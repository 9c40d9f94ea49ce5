"""The settings of an engine."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

_AUTO = {"zero": "auto"}
"""Of settings that 0 leaves open: they are chosen once the base model is loaded."""


class EngineConfig(Struct, frozen=True, kw_only=True):
    """What the engine needs to know before it starts. Sizes are in bytes, times in seconds."""

    model: Annotated[str, Meta(description="Folder or hub id of the base model.")]
    revision: Annotated[
        str | None,
        Meta(
            description="Branch, tag or commit of a hub id; by default what its branch main is "
            "when the model is loaded.",
        ),
    ] = None
    dtype: Annotated[
        str,
        Meta(
            pattern="^(auto|float32|bfloat16|float16)$",
            description="Number format of the base: auto, float32, bfloat16 or float16. "
            "auto means float32 on a CPU and the saved format on a GPU.",
        ),
    ] = "auto"
    device: Annotated[str, Meta(description="Where the model runs: auto, cpu, cuda or cuda:N.")] = (
        "auto"
    )
    kernels: Annotated[
        str,
        Meta(
            pattern="^(auto|torch|cpu|triton)$",
            description="Kernels: torch (plain definitions), cpu (compiled), triton (for a GPU), "
            "or auto.",
        ),
    ] = "auto"
    quantization: Annotated[
        str,
        Meta(
            pattern="^(none|bfloat16|int8|fp8)$",
            description="Rounds the weights of the base, never those of adapters: none; bfloat16 "
            "or int8 by the kernels of a CPU; int8 or fp8 on a GPU or with --kernels torch, by "
            "torchao (pip install 'loramux[quantized]').",
        ),
    ] = "none"
    deterministic: Annotated[
        bool,
        Meta(
            description="Tokens and log-probabilities that are the same to the last bit whatever "
            "else is in the batch; on a CPU, in one process. Refused where it cannot be had.",
        ),
    ] = False
    tensor_parallel: Annotated[
        int,
        Meta(
            ge=1,
            description="Processes that hold the base together, each a part of every layer: "
            "one for each GPU, or all on the CPU.",
        ),
    ] = 1
    threads: Annotated[
        int,
        Meta(
            ge=0,
            description="CPU threads of the engine, all of its processes together; auto means one "
            "for each core that it may use by its affinity and the limits of its container.",
            extra_json_schema=_AUTO,
        ),
    ] = 0
    max_context: Annotated[
        int,
        Meta(
            ge=0,
            description="Most tokens of prompt and completion; 0 means the model's own, and more "
            "than that there are not.",
        ),
    ] = 0
    max_running: Annotated[
        int,
        Meta(
            ge=0,
            description="Most requests in one batch; auto means 64 on a CPU and 256 on a GPU.",
            extra_json_schema=_AUTO,
        ),
    ] = 0
    max_batch_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="Most tokens in one batch; longer prompts run in chunks, what an encoder "
            "reads is one chunk, however long. auto means 512 on a CPU and 2048 on a GPU.",
            extra_json_schema=_AUTO,
        ),
    ] = 0
    max_stall: Annotated[
        float,
        Meta(
            ge=0,
            description="Longest wait in seconds for a stream's next token because of others' "
            "prompts: their chunks shrink for it, but not below 64 tokens. 0 means no limit.",
        ),
    ] = 0.5
    speculative_tokens: Annotated[
        int,
        Meta(
            ge=-1,
            description="Most tokens of a request that are drafted, from what it or its adapter "
            "wrote before, and checked in one step. They never change what is chosen, and a full "
            "batch has fewer. 0 drafts nothing; -1 means 16 on a CPU and 0 on a GPU.",
        ),
    ] = -1
    max_waiting: Annotated[int, Meta(ge=1, description="Most requests in the queue.")] = 1024
    block_size: Annotated[int, Meta(ge=1, description="Tokens in one KV block.")] = 16
    kv_memory: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory for KV blocks, of each process; auto means enough for "
            "--max-running contexts, up to a quarter of what is free in this container or machine, "
            "or to what steps and adapters leave of a GPU. What recurrent layers know of requests "
            "lies there, too, in half of it at most.",
            extra_json_schema={"format": "bytes", **_AUTO},
        ),
    ] = 0
    prefix_cache: Annotated[
        bool,
        Meta(
            description="Share KV blocks of equal beginnings under the same adapter, or what is "
            "known of a text that an encoder has read."
        ),
    ] = True
    adapter_memory: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory for adapters beside the base model, on its device, of each "
            "process; auto means 1G on a CPU, or an eighth of what is free where that is less, and "
            "on a GPU a quarter of what the base and steps leave.",
            extra_json_schema={"format": "bytes", **_AUTO},
        ),
    ] = 0
    host_adapter_memory: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory for adapters packed on the host; auto means 4G beside a CPU and "
            "64G beside a GPU, or a quarter of what is free in this container or machine where "
            "that is less.",
            extra_json_schema={"format": "bytes", **_AUTO},
        ),
    ] = 0
    adapter_dtype: Annotated[
        str,
        Meta(
            pattern="^(auto|bfloat16|float16)$",
            description="How adapters rest in memory: auto (as they were saved), or rounded to "
            "bfloat16 or float16, which halves what those of float32 take and cost.",
        ),
    ] = "auto"
    eviction: Annotated[
        str,
        Meta(
            pattern="^(lru|cost)$",
            description="Which adapters leave memory first: lru (those not used for longest) or "
            "cost (those that cost least to bring back: load time x popularity, by size).",
        ),
    ] = "lru"
    max_tenant_share: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Part of --adapter-memory beyond which a tenant's adapters give way to "
            "others first, and its loads take the place of its own; 1 means no limit.",
        ),
    ] = 1.0
    max_bypassed: Annotated[
        int,
        Meta(
            ge=0,
            description="How many later requests may start before one whose adapter is not "
            "loaded yet; then the batch drains until it fits.",
        ),
    ] = 256

    enforce_eager: Annotated[
        bool,
        Meta(
            description="Run every step on a GPU operation by operation, and record no CUDA "
            "graphs: slower, and for finding out what is wrong."
        ),
    ] = False
    max_images: Annotated[
        int,
        Meta(
            ge=0,
            description="Most images of a request, for a base that sees; 0 takes none, and what "
            "sees is not kept in memory.",
        ),
    ] = 8


decode_config = msgspec.msgpack.Decoder(EngineConfig).decode
