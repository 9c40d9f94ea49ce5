"""Adapters with modules of their own, as PEFT saves them, over the socket: PEFT's tokens."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.parity.test_saved import configs, save
from tests.support.adapters import expected, with_adapter
from tests.support.models import byte_tokenizer, tiny_model
from tests.support.server import RunningServer

METHODS = ("all of these", "ia3", "dora of both", "tokens", "nothing but tokens")
PROMPT = "A stitch in time"


def test_what_peft_saved_is_served_beside_others(
    tiny_server: RunningServer, tmp_path: Path
) -> None:
    model = tiny_model("llama", vocab_size=259)
    prompt = byte_tokenizer()(PROMPT).input_ids
    found = configs(model)
    folders = {
        f"whole-{i}": save(model, found[method], tmp_path / method, i)
        for i, method in enumerate(METHODS)
    }
    wanted = {
        name: expected(with_adapter(model, folder), prompt, 6).tokens
        for name, folder in folders.items()
    }
    with tiny_server.client() as client, ThreadPoolExecutor(len(folders)) as pool:

        def ask(name: str) -> list[int]:
            answer = client.generate(
                PROMPT, adapter=name, temperature=0, max_tokens=6, ignore_eos=True
            )
            return list(answer.token_ids)

        try:
            for name, folder in folders.items():
                client.adapters.upload(name, folder)
            answers = dict(zip(folders, pool.map(ask, folders), strict=True))
        finally:
            for adapter in client.adapters.list():
                if adapter.name in folders:
                    client.adapters.delete(adapter.name)
    assert answers == wanted
    assert len({tuple(tokens) for tokens in wanted.values()}) > 1
