"""The settings of an engine."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

_AUTO = {"zero": "auto"}
"""Marks settings whose 0 means auto: they are chosen once the base model is loaded."""


class EngineConfig(Struct, frozen=True, kw_only=True):
    """The settings that an engine starts with. Sizes are in bytes, times in seconds."""

    model: Annotated[
        str, Meta(description="Base model to serve: a local folder or a Hugging Face Hub id.")
    ]
    revision: Annotated[
        str | None,
        Meta(
            description="Branch, tag or commit of a Hub model; default: the head of main when "
            "the model is loaded.",
        ),
    ] = None
    dtype: Annotated[
        str,
        Meta(
            pattern="^(auto|float32|bfloat16|float16)$",
            description="Data type of the base model: auto, float32, bfloat16 or float16. auto "
            "means float32 on a CPU and the checkpoint's dtype on a GPU.",
        ),
    ] = "auto"
    generation_config: Annotated[
        str,
        Meta(
            description="Sampling defaults for what neither a request nor its adapter sets: auto "
            "(the base's generation_config.json), none (temperature 1), or a folder with such a "
            "file.",
        ),
    ] = "auto"
    device: Annotated[
        str, Meta(description="Device to run the model on: auto, cpu, cuda or cuda:N.")
    ] = "auto"
    kernels: Annotated[
        str,
        Meta(
            pattern="^(auto|torch|cpu|triton)$",
            description="Kernels to use: torch (reference), cpu (compiled), triton (GPU), or auto.",
        ),
    ] = "auto"
    quantization: Annotated[
        str,
        Meta(
            pattern="^(none|bfloat16|int8|fp8)$",
            description="Quantize the weights of the base model, never those of adapters: "
            "none; bfloat16 or int8 with the CPU kernels; int8 or fp8 on a GPU or with "
            "--kernels torch, by torchao (extra `quantized`).",
        ),
    ] = "none"
    deterministic: Annotated[
        bool,
        Meta(
            description="Make tokens and log-probabilities batch-invariant: bit-identical "
            "whatever else is in the batch. For a CPU and one process; refused where it "
            "cannot be guaranteed.",
        ),
    ] = False
    tensor_parallel: Annotated[
        int,
        Meta(
            ge=1,
            description="Tensor parallelism: number of processes to shard every layer over, "
            "one per GPU, or all on the CPU.",
        ),
    ] = 1
    threads: Annotated[
        int,
        Meta(
            ge=0,
            description="CPU threads of the engine, for all its processes together; auto means "
            "one for each core that its CPU affinity and container limits allow.",
            extra_json_schema=_AUTO,
        ),
    ] = 0
    max_context: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum context length in tokens, prompt and completion together; 0 "
            "means the model's own, which is also the upper limit.",
        ),
    ] = 0
    max_running: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum number of requests in a batch; auto means 64 on a CPU and 256 "
            "on a GPU.",
            extra_json_schema=_AUTO,
        ),
    ] = 0
    max_batch_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="Token budget of a batch. Longer prompts are prefilled in chunks; the "
            "input of an encoder is never split, however long. auto means 512 on a CPU and "
            "2048 on a GPU.",
            extra_json_schema=_AUTO,
        ),
    ] = 0
    max_stall: Annotated[
        float,
        Meta(
            ge=0,
            description="Limit in seconds for how long the prefill of other requests may delay "
            "a stream's next token: their chunks shrink to meet it, but not below 64 tokens. "
            "0 means no limit.",
        ),
    ] = 0.5
    speculative_tokens: Annotated[
        int,
        Meta(
            ge=-1,
            description="Speculative decoding: maximum number of draft tokens per request and "
            "step, taken from the request's own text and its adapter's earlier outputs. "
            "Drafts never change which tokens are chosen, and a full batch gets fewer. 0 "
            "turns it off; -1 means 16 on a CPU and 0 on a GPU.",
        ),
    ] = -1
    max_waiting: Annotated[int, Meta(ge=1, description="Queue limit in number of requests.")] = 1024
    block_size: Annotated[int, Meta(ge=1, description="Tokens per block of the KV cache.")] = 16
    kv_memory: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory for the KV cache, in each process; auto means enough for "
            "--max-running full contexts, up to a quarter of the free memory of the "
            "container or machine, or, on a GPU, up to what steps and adapters leave. "
            "Recurrent layers keep their states there, too, in half of it at most.",
            extra_json_schema={"format": "bytes", **_AUTO},
        ),
    ] = 0
    prefix_cache: Annotated[
        bool,
        Meta(
            description="Prefix caching: share KV blocks between prompts with the same prefix "
            "and adapter; for encoders, reuse the outputs for a text that was encoded "
            "before."
        ),
    ] = True
    adapter_memory: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory for adapters on the device of the base model, in each process; "
            "auto means 1G on a CPU, or an eighth of the free memory if that is less, and on "
            "a GPU a quarter of what the base and steps leave.",
            extra_json_schema={"format": "bytes", **_AUTO},
        ),
    ] = 0
    host_adapter_memory: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory for the cache of packed adapters on the host; auto means 4G "
            "with a CPU and 64G with a GPU, or a quarter of the free memory of the container "
            "or machine if that is less.",
            extra_json_schema={"format": "bytes", **_AUTO},
        ),
    ] = 0
    adapter_dtype: Annotated[
        str,
        Meta(
            pattern="^(auto|bfloat16|float16)$",
            description="Data type of adapters in memory: auto (as saved), or bfloat16 or "
            "float16 (rounded), which halves the memory and cost of float32 adapters.",
        ),
    ] = "auto"
    eviction: Annotated[
        str,
        Meta(
            pattern="^(lru|cost)$",
            description="Eviction policy of the adapter caches: lru (least recently used "
            "first) or cost (cheapest to reload first: load time x popularity, by size).",
        ),
    ] = "lru"
    max_tenant_share: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Share of --adapter-memory above which a tenant's adapters are evicted "
            "before those of others, and its loads evict its own adapters. 1 means no limit.",
        ),
    ] = 1.0
    max_bypassed: Annotated[
        int,
        Meta(
            ge=0,
            description="Number of later requests that may start before one whose adapter is "
            "not loaded yet; after that the batch drains until the adapter fits.",
        ),
    ] = 256

    enforce_eager: Annotated[
        bool,
        Meta(description="Run GPU steps eagerly, without CUDA graphs: slower, for debugging."),
    ] = False
    max_images: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum number of images in a request, for vision-language models; 0 "
            "accepts none, and the vision encoder is not kept in memory.",
        ),
    ] = 8


decode_config = msgspec.msgpack.Decoder(EngineConfig).decode
