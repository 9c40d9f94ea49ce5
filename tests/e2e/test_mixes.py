"""Mixes and scales over a real socket."""

from pathlib import Path

import pytest
from peft import PeftModel

from loramux import SamplingOptions
from loramux.cli.app import run
from loramux.errors import NotFoundError
from tests.support.adapters import expected, quiet_peft
from tests.support.models import byte_tokenizer, tiny_model
from tests.support.server import RunningServer

PROMPT = "The quick brown fox"
NUM_TOKENS = 8
GREEDY = SamplingOptions(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def peft(tiny_adapters: Path) -> PeftModel:
    """Every adapter of `tiny_server` that mixes are made of here, and the mixes."""
    with quiet_peft():
        model = tiny_model("llama", vocab_size=259)
        wrapped = PeftModel.from_pretrained(model, str(tiny_adapters / "small"), "small")
        for name in ("wide", "single"):
            wrapped.load_adapter(str(tiny_adapters / name), name)
    return wrapped.eval()


def mix_of(peft: PeftModel, weights: dict[str, float]) -> list[int]:
    """Return what PEFT makes of PROMPT with a mix."""
    name = repr(weights).replace(".", "_")
    with quiet_peft():
        peft.base_model.add_weighted_adapter(
            list(weights), list(weights.values()), name, combination_type="cat"
        )
    peft.set_adapter(name)
    return expected(peft, byte_tokenizer()(PROMPT).input_ids, NUM_TOKENS).tokens


def test_a_mix_equals_that_of_peft_and_names_all_that_answered(
    tiny_server: RunningServer, peft: PeftModel
) -> None:
    weights = {"wide": 0.75, "small": -1.5, "single": 2.0}
    with tiny_server.client() as client:
        answer = client.generate(PROMPT, adapters=weights, **GREEDY)
        chunks = list(client.stream(PROMPT, adapters=list(weights.items()), **GREEDY))
        digests = [client.adapters.get(name).digest for name in weights]
        requests = client.adapters.get("single").status.requests
    assert list(answer.token_ids) == mix_of(peft, weights)
    assert answer.adapter is None
    assert [adapter.name for adapter in answer.adapters] == list(weights)
    assert [adapter.digest for adapter in answer.adapters] == digests
    assert sum((chunk.token_ids for chunk in chunks), ()) == answer.token_ids
    assert chunks[0].adapters == answer.adapters
    assert not any(chunk.adapters for chunk in chunks[1:])
    assert requests >= 2


def test_a_scale_is_that_of_peft_and_0_is_the_base(
    tiny_server: RunningServer, peft: PeftModel
) -> None:
    with tiny_server.client() as client:
        base = client.generate(PROMPT, **GREEDY)
        plain = client.generate(PROMPT, adapter="wide", **GREEDY)
        half = client.generate(PROMPT, adapter="wide", scale=0.5, **GREEDY)
        none = client.generate(PROMPT, adapter="wide", scale=0.0, **GREEDY)
        one = client.generate(PROMPT, adapter="wide", scale=1.0, **GREEDY)
    assert list(half.token_ids) == mix_of(peft, {"wide": 0.5})
    assert none.token_ids == base.token_ids != plain.token_ids == one.token_ids
    assert none.adapter == half.adapter == plain.adapter
    assert none.adapters == (plain.adapter,)
    assert base.adapters == ()


def test_every_adapter_of_a_mix_has_to_be_there(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client, pytest.raises(NotFoundError, match="'nobody'") as caught:
        client.generate(PROMPT, adapters={"wide": 1.0, "nobody": 0.0}, **GREEDY)
    assert (caught.value.reason, caught.value.field) == ("ADAPTER_NOT_FOUND", "adapters[1].adapter")


@pytest.mark.parametrize("separator", ["=", ":"])
def test_the_command_line_mixes(
    tiny_server: RunningServer, separator: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = [
        "loramux", "generate", PROMPT, f"--adapter=wide{separator}0.75",
        f"--adapter=small:1{separator}-1.5", "--max-tokens=4", "--temperature=0",
        f"--server={tiny_server.target}",
    ]  # fmt: skip
    with tiny_server.client() as client:
        mix = {"wide": 0.75, "small:1": -1.5}
        answer = client.generate(PROMPT, adapters=mix, temperature=0.0, max_tokens=4)
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="0"):
        run()
    assert capsys.readouterr().out == answer.text + "\n"
