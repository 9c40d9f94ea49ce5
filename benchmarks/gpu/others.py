"""The same model in PEFT's mixed batch and in transformers' own continuous batching."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from transformers import GenerationConfig, LlamaForCausalLM

from benchmarks.fixture import Shape
from benchmarks.gpu.record import say
from benchmarks.gpu.served import dtype_of, make_model

_TOKENS = 16
_COUNTS = (1, 8, 32)


def peft(
    shape: Shape, device: torch.device, adapter: Path, batch: int, context: int
) -> Iterator[tuple[int, float]]:
    """Yield output tokens per second of PEFT's mixed batch for each number of adapters.

    For a static batch of `batch` prompts of `context` tokens, without prefill: the difference of
    two runs, with few tokens and with more.
    """
    warnings.simplefilter("ignore")
    model = PeftModel.from_pretrained(
        make_model(shape, device, dtype_of(device)), str(adapter), adapter_name="0"
    ).eval()
    tokens = torch.randint(3, shape.vocab, (batch, context), device=device)
    _generate(model, tokens, ["0"] * batch, 2)  # one-time costs of the first run
    for count in (count for count in _COUNTS if count <= batch):
        for number in range(len(model.peft_config), count):
            model.load_adapter(str(adapter), adapter_name=str(number))
        names = [str(row % count) for row in range(batch)]
        few, more = (_generate(model, tokens, names, length) for length in (2, 2 + _TOKENS))
        rate = batch * _TOKENS / (more - few)
        say(f"PEFT, {count} adapters: {rate:.0f} tokens/s")
        yield count, rate


@torch.inference_mode()
def _generate(model: PeftModel, tokens: torch.Tensor, names: list[str], length: int) -> float:
    begin = time.perf_counter()
    model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=length,
        min_new_tokens=length, do_sample=False, pad_token_id=0, adapter_names=names,
    )  # fmt: skip
    _synchronize()
    return time.perf_counter() - begin


def continuous_batching(
    shape: Shape, device: torch.device, batch: int, context: int
) -> dict[str, object]:
    """Return output tokens per second of the base in transformers' continuous batching.

    Also the difference of two runs. If it does not run with the available attention, the reason.
    """
    model = make_model(shape, device, dtype_of(device))
    prompts = torch.randint(3, shape.vocab, (batch, context)).tolist()
    few, more = 2, 2 + 4 * _TOKENS
    try:
        # The first run has one-time costs.
        _, *taken = (_answer(model, prompts, length) for length in (more, few, more))
    except (RuntimeError, ValueError, ImportError, AttributeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"tokens_per_second": batch * (more - few) / (taken[1] - taken[0])}


def _answer(model: LlamaForCausalLM, prompts: list[list[int]], length: int) -> float:
    config = GenerationConfig(
        max_new_tokens=length, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    begin = time.perf_counter()
    model.generate_batch(inputs=prompts, generation_config=config)
    _synchronize()
    return time.perf_counter() - begin


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
