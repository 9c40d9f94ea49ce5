"""Other servers: how to start them and send load to them."""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

from loramux import AsyncClient
from loramux.bench import Planned, Record, Report, closed_loop, summarize

START_SECONDS = 600
KINDS = ("base", "identical", "distinct")
"""Workloads, named as for `loramux bench --popularity`."""
Send = Callable[[Sequence[Planned], int], Coroutine[None, None, Report]]
Stream = Callable[[Planned], AsyncIterator[int]]
"""Sends a request and yields the number of tokens in each chunk of the answer."""


@dataclass(frozen=True, slots=True)
class Fixture:
    """The inputs of every server."""

    folder: Path
    base: Path
    adapters: Path
    names: list[str]
    max_running: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that can be measured."""

    start: Callable[[], AbstractContextManager[Send]]
    kinds: tuple[str, ...] = KINDS
    """Workloads to run on it."""


def grpc_loop(target: str) -> Send:
    """Return a closed loop over our gRPC API."""

    async def send(requests: Sequence[Planned], concurrency: int) -> Report:
        async with AsyncClient(target) as client:
            return summarize(await closed_loop(client, requests, concurrency, lambda _: None))

    return send


def find_tcmalloc() -> str | None:
    """Return the name of the allocator that vLLM's documentation recommends, if installed.

    With 32 adapters vLLM reached 15, 32 and 44 tokens per second with it, and 8, 11 and 13 in a run
    without it.
    """
    return find_library("tcmalloc_minimal")


def vllm(python: Path, fixture: Fixture, *, lora: bool) -> Contender:
    """Return vLLM on its CPU backend, in float32."""

    @contextmanager
    def start() -> Iterator[Send]:
        port = 8100 + random.randrange(500)
        command = [
            str(python.parent / "vllm"), "serve", str(fixture.base), "--served-model-name", "base",
            "--dtype", "float32", "--max-model-len", "1024", "--host", "127.0.0.1",
            "--port", str(port), "--max-num-seqs", str(fixture.max_running),
            "--no-enable-prefix-caching",
        ]  # fmt: skip
        if lora:
            count = str(len(fixture.names))
            command += ["--enable-lora", "--max-loras", count, "--max-lora-rank", "64",
                        "--max-cpu-loras", count, "--lora-modules"]  # fmt: skip
            command += [f"{name}={fixture.adapters / name}" for name in fixture.names]
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        }  # fmt: skip
        if tcmalloc := find_tcmalloc():
            environment["LD_PRELOAD"] = tcmalloc
        health = f"http://127.0.0.1:{port}/health"
        with _process(command, environment, fixture.folder / "vllm.log", health):

            def stream(request: Planned) -> AsyncIterator[int]:
                body = {
                    "model": request.adapter or "base", "prompt": request.prompt,
                    "max_tokens": request.max_tokens, "temperature": 0, "ignore_eos": True,
                    "stream": True, "return_token_ids": True,
                }  # fmt: skip
                return _events(port, "/v1/completions", body, _vllm_tokens)

            yield _http_loop(stream)

    # One adapter costs it as much as many, so it is not measured.
    return Contender(start, ("distinct",) if lora else ("base",))


def llama(binary: Path, source: Path, fixture: Fixture) -> Contender:
    """Return llama.cpp's server with base and adapters in float16."""
    files = fixture.folder / "gguf"
    numbers = {name: number for number, name in enumerate(fixture.names)}

    @contextmanager
    def start() -> Iterator[Send]:
        if not files.exists():
            _convert(source, fixture, files)
        port = 8600 + random.randrange(500)
        slots = fixture.max_running
        command = [
            str(binary), "-m", str(files / "base.gguf"), "-t", str(os.cpu_count() or 1),
            "-c", str(slots * 512), "-np", str(slots), "--host", "127.0.0.1", "--port", str(port),
            "--cache-ram", "0", "--lora-init-without-apply",
            "--lora", ",".join(str(files / f"{name}.gguf") for name in fixture.names),
        ]  # fmt: skip
        health = f"http://127.0.0.1:{port}/health"
        with _process(command, {}, fixture.folder / "llama.log", health):

            def stream(request: Planned) -> AsyncIterator[int]:
                # Without a list, all adapters would be applied.
                number = numbers[request.adapter] if request.adapter else 0
                body = {
                    "prompt": request.prompt, "n_predict": request.max_tokens, "ignore_eos": True,
                    "stream": True, "temperature": 0, "samplers": ["top_k"], "top_k": 1,
                    "cache_prompt": False, "return_tokens": True,
                    "lora": [{"id": number, "scale": 1.0 if request.adapter else 0.0}],
                }  # fmt: skip
                return _events(port, "/completion", body, _llama_tokens)

            yield _http_loop(stream)

    return Contender(start)


def write_tokenizer(base: Path, vocab_size: int) -> None:
    """Add a tokenizer, which the peers require, to the base: one made-up word per token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    vocab = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    vocab |= {f"w{number}": number for number in range(len(vocab), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))  # required by llama.cpp
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(str(base))


def _convert(source: Path, fixture: Fixture, files: Path) -> None:
    files.mkdir()
    # The converters identify tokenizers by a hash; this one splits as GPT-2's does.
    script = (
        "import runpy, sys; from pathlib import Path; source, *arguments = sys.argv[1:];"
        "sys.path[:0] = [source, source + '/gguf-py'];"
        "from conversion import base;"
        "[setattr(kind, 'get_vocab_base_pre', lambda self, tokenizer: 'gpt-2')"
        " for kind in vars(base).values() if hasattr(kind, 'get_vocab_base_pre')];"
        "sys.argv = arguments; runpy.run_path(source + '/' + arguments[0], run_name='__main__')"
    )
    tools: list[tuple[str, Path, str, list[str]]] = [
        ("convert_hf_to_gguf.py", fixture.base, "base", [])
    ]
    tools += [
        ("convert_lora_to_gguf.py", fixture.adapters / name, name, ["--base", str(fixture.base)])
        for name in fixture.names
    ]
    for tool, model, name, more in tools:
        command = [sys.executable, "-c", script, str(source), tool, str(model),
                   "--outtype", "f16", "--outfile", str(files / f"{name}.gguf"), *more]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tool} failed:\n{done.stderr[-2000:]}")


@contextmanager
def _process(
    command: list[str], environment: dict[str, str], log: Path, url: str
) -> Iterator[None]:
    """Run a server for the block, which starts once `url` responds."""
    with (
        log.open("ab") as output,
        subprocess.Popen(
            command, env=os.environ | environment, stdout=output, stderr=output
        ) as process,
    ):
        try:
            _wait(process, url)
            yield
        except BaseException:
            print(log.read_text(encoding="utf-8", errors="replace")[-2000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise SystemExit(f"{url} did not answer")


def _http_loop(stream: Stream) -> Send:
    async def send(requests: Sequence[Planned], concurrency: int) -> Report:
        left = iter(requests)
        records: list[Record] = []

        async def worker() -> None:
            for request in left:
                record = Record(request.adapter, time.perf_counter())
                records.append(record)
                async for count in stream(request):
                    record.chunks.append((time.perf_counter(), count))

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return summarize(records)

    return send


async def _events(
    port: int, path: str, body: dict[str, object], tokens: Callable[[dict[str, object]], int]
) -> AsyncIterator[int]:
    """Post `body` and yield the number of tokens in each server-sent event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r} {await reader.read(2000)!r}")
        async for line in reader:
            if line.startswith(b"data: {") and (count := tokens(json.loads(line[6:]))):
                yield count
    finally:
        writer.close()


def _vllm_tokens(event: dict[str, object]) -> int:
    choices = event.get("choices")
    assert isinstance(choices, list)
    return sum(len(choice.get("token_ids") or ()) for choice in choices)


def _llama_tokens(event: dict[str, object]) -> int:
    tokens = event.get("tokens")
    return 0 if event.get("stop") else len(tokens) if isinstance(tokens, list) and tokens else 1
