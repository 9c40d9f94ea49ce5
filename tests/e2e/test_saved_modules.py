"""Adapters with modules of their own, as PEFT saves them, over the socket: PEFT's tokens."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loramux import Message
from loramux.errors import InvalidArgumentError
from tests.parity.test_saved import configs, lora, save
from tests.support.adapters import expected, with_adapter
from tests.support.models import byte_tokenizer, tiny_model
from tests.support.server import RunningServer

METHODS = ("all of these", "ia3", "dora of both", "tokens", "nothing but tokens")
PROMPT = "A stitch in time"
TEMPLATE = (
    "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<call>{% endif %}"
)


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


def test_an_adapter_has_tokens_that_others_lack(tiny_server: RunningServer, tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=259)
    resized = tiny_model("llama", vocab_size=259)
    resized.resize_token_embeddings(262, mean_resizing=False)
    config = lora(["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    folder = save(resized, config, tmp_path / "grown", 3)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<call>", "<of>"])
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(folder))
    prompt = [5, 261, 7, 260]
    wanted = expected(with_adapter(resized, folder), prompt, 6).tokens
    of_base = expected(model, [5, 6, 7], 6).tokens
    with tiny_server.client() as client, ThreadPoolExecutor(2) as pool:
        try:
            client.adapters.upload("grown", folder)

            def ask(tokens: list[int], **options: Any) -> list[int]:
                answer = client.generate(
                    tokens, temperature=0, max_tokens=6, ignore_eos=True, **options
                )
                return list(answer.token_ids)

            grown = pool.submit(ask, prompt, adapter="grown")
            base = pool.submit(ask, [5, 6, 7])
            assert (grown.result(), base.result()) == (wanted, of_base)
            bias = {261: 100.0}
            assert ask(prompt, adapter="grown", logit_bias=bias) == [261] * 6
            text = "a<call>b<of>"
            ids = tuple(tokenizer(text).input_ids)
            assert client.tokenize(text, adapter="grown").ids == ids
            assert len(client.tokenize(text)) > len(ids)
            assert client.detokenize(ids, adapter="grown", skip_special_tokens=True) == text
            answer = client.generate(
                text, adapter="grown", temperature=0, max_tokens=2, logit_bias={259: 100.0}
            )
            made = expected(with_adapter(resized, folder), tokenizer(text).input_ids, 1)
            assert made.logprobs.shape[1] == 262
            assert (answer.text, answer.usage.prompt_tokens) == ("<call><call>", 5)
            ended = client.generate(
                text, adapter="grown", temperature=0, max_tokens=5, logit_bias=bias
            )
            assert (ended.text, ended.token_ids, ended.finish_reason) == ("", (261,), "stop")
            talk: list[Message] = [{"role": "user", "content": "b<end>"}]
            chatted = client.chat(
                talk, adapter="grown", temperature=0, max_tokens=6, ignore_eos=True
            )
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": "b@"}], add_generation_prompt=True, return_dict=False
            )
            at = rendered.index(tokenizer("@").input_ids[-1])
            rendered[at : at + 1] = byte_tokenizer()("<end>").input_ids[1:]
            assert {259, 261} <= set(rendered)
            assert chatted.usage.prompt_tokens == len(rendered)
            made = expected(with_adapter(resized, folder), rendered, 6)
            assert list(chatted.token_ids) == made.tokens
            assert client.generate(text, max_tokens=1).usage.prompt_tokens == 1 + len(text)
            with pytest.raises(InvalidArgumentError, match=r"holds token 262.* from 0 to 261"):
                ask([262], adapter="grown")
            with pytest.raises(InvalidArgumentError, match=r"holds token 261.* from 0 to 258"):
                ask(prompt)
            with pytest.raises(InvalidArgumentError, match=r"logit_bias holds token 261"):
                ask([5], adapter="small", logit_bias=bias)
        finally:
            client.adapters.delete("grown")
