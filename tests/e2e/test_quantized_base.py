"""A base that was saved quantized, over the socket, with an adapter on it."""

from pathlib import Path

from tests.e2e.test_parity import check
from tests.support.adapters import expected, save_adapter, with_adapter
from tests.support.dequantized import METHODS, save_quantized
from tests.support.models import byte_tokenizer, tiny_model
from tests.support.server import RunningServer


def test_it_answers_as_peft_does_on_the_dequantized_model(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=259)
    base = save_quantized(model, tmp_path / "base", METHODS["awq"])
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(str(base))
    adapter = save_adapter(model, tmp_path / "adapters" / "own", seed=1, r=8)
    references = []
    for prompt, name in (("abc", None), ("The quick brown fox", "own")):
        wrapped = with_adapter(model, adapter if name else None)
        references.append((prompt, name, expected(wrapped, tokenizer(prompt).input_ids, 6)))
    with RunningServer(tmp_path, base, "--adapters", str(adapter.parent)) as server:
        check(server, references, num_tokens=6)
        assert "was saved in awq of 4 bits" in server.log.read_text()
