"""Models that write another text than they read, over the real socket: as transformers and PEFT."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from loramux.cli.app import run
from loramux.errors import FailedPreconditionError, InvalidArgumentError, LoramuxError
from loramux_adapters import PackageError
from tests.support.adapters import save_tuned
from tests.support.encoder_models import own_model
from tests.support.gateway import RunningGateway
from tests.support.open_inference import asking, call, texts_of
from tests.support.server import RunningServer
from tests.support.trained import Trainer
from tests.support.writers import (
    END,
    ending_tokenizer,
    generated,
    language_tokenizer,
    save_writer,
)

TEXTS = ["translate: a house", "x", "summarize: it was late 🙂, nobody came."]
LORA: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM", "r": 5, "lora_alpha": 9}
FRENCH, GERMAN = language_tokenizer().convert_tokens_to_ids(["fra_Latn", "deu_Latn"])
NUM_TOKENS = 8
GREEDY: dict[str, Any] = {"max_tokens": NUM_TOKENS, "temperature": 0.0}


@dataclass(frozen=True)
class Writers:
    """A server, and the models that it has, as PEFT loads them."""

    server: RunningServer
    models: dict[str | None, torch.nn.Module]
    folder: Path


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writers]:
    folder = tmp_path_factory.mktemp("t5")
    base = save_writer("t5", folder / "base", ending_tokenizer())
    own = own_model(base)
    names = ["q", "k", "v", "o", "wi", "wo"]
    configs: dict[str, PeftConfig] = {
        "lora": LoraConfig(target_modules=names, **LORA),
        "dora": LoraConfig(target_modules=["q", "wo"], use_dora=True, **LORA),
        "ia3": IA3Config(
            task_type="SEQ_2_SEQ_LM", target_modules=["k", "v", "wo"], feedforward_modules=["wo"]
        ),
    }
    virtual: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 4}
    configs |= {
        "prompt": PromptTuningConfig(**virtual),
        "prefix": PrefixTuningConfig(**virtual, token_dim=32, num_layers=2, num_attention_heads=4),
    }
    models: dict[str | None, torch.nn.Module] = {None: own}
    for seed, (name, config) in enumerate(configs.items()):
        models[name] = save_tuned(own, config, folder / "adapters" / name, seed=seed)
    arguments = ("--adapters", str(folder / "adapters"), "--max-context", "128")
    with RunningServer(folder, base, *arguments) as server:
        yield Writers(server, models, folder)


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writers]:
    folder = tmp_path_factory.mktemp("nllb")
    tokenizer = language_tokenizer()
    base = save_writer("m2m100", folder / "base", tokenizer, forced_bos_token_id=FRENCH)
    own = own_model(base)
    models: dict[str | None, torch.nn.Module] = {None: own}
    for seed, name in enumerate(("lora", "german")):
        config = LoraConfig(target_modules=["q_proj", "fc1", "out_proj"], **LORA)
        models[name] = save_tuned(own, config, folder / "adapters" / name, seed=seed)
    (folder / "adapters" / "german" / "generation_config.json").write_text(
        json.dumps({"forced_bos_token_id": GERMAN})
    )
    source = tokenizer(TEXTS[0]).input_ids
    bad = generated(own, source, 4)[0][1]
    other = generated(own, source, 4, bad_words_ids=[[bad]])[0][1]
    path = base / "generation_config.json"
    # An end is never forbidden, as in transformers.
    forbidden = {"bad_words_ids": [[bad], [END], [5, 6]], "suppress_tokens": [other]}
    path.write_text(json.dumps(json.loads(path.read_text()) | forbidden))
    for model in models.values():
        model.generation_config.update(**forbidden)  # type: ignore[operator,union-attr]
    with RunningServer(folder, base, "--adapters", str(folder / "adapters")) as server:
        yield Writers(server, models, folder)


def written(row: list[int], num_begun: int = 0) -> tuple[int, ...]:
    return tuple(row[num_begun:])


def test_what_is_written_is_what_transformers_and_peft_write(t5: Writers) -> None:
    tokenizer = ending_tokenizer()
    found = set()
    with t5.server.client() as client:
        info = client.info()
        assert (info.kind, info.context_length, info.source_length) == ("seq2seq", 128, 64)
        for name, model in t5.models.items():
            for text in TEXTS:
                source = tokenizer(text).input_ids
                wanted = written(generated(model, source, NUM_TOKENS)[0])
                answer = client.generate(text, adapter=name, **GREEDY)
                assert answer.token_ids == wanted
                assert answer.usage.prompt_tokens == len(source)
                assert answer.usage.completion_tokens == len(wanted)
                assert answer.text == tokenizer.decode(wanted, skip_special_tokens=True)
                assert client.generate(source, adapter=name, **GREEDY).token_ids == wanted
                found.add(wanted)
            chunks = list(client.stream(TEXTS[0], adapter=name, **GREEDY))
            whole = client.generate(TEXTS[0], adapter=name, **GREEDY)
            assert "".join(chunk.text for chunk in chunks) == whole.text
            assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids
    assert len(found) > len(t5.models)


def test_what_was_trained_is_written(t5: Writers) -> None:
    lines = [{"text": "a house", "label": "ein"}, {"text": "x", "label": "y"}]
    with t5.server.client() as client:
        trainer = Trainer(t5.folder / "base", client, t5.folder)
        for method, epochs in (("lora", 40), ("prefix", 2)):
            name = f"trained-{method}"
            folder = trainer.push(name, lines, method=method, epochs=epochs, batch_size=2)
            model = trainer.tuned(AutoModelForSeq2SeqLM, folder)
            for line in lines:
                source = trainer.tokenizer(line["text"]).input_ids
                answer = client.generate(line["text"], adapter=name, **GREEDY)
                assert answer.token_ids == written(generated(model, source, NUM_TOKENS)[0])
                assert answer.text.startswith(line["label"]) or method != "lora"
            client.adapters.delete(name)


def test_parameters_look_at_what_is_written_alone(t5: Writers) -> None:
    tokenizer = ending_tokenizer()
    source, model = tokenizer(TEXTS[0]).input_ids, t5.models["lora"]
    begin = tokenizer("Eine ", add_special_tokens=False).input_ids
    options: dict[str, Any] = {"repetition_penalty": 1.5, "max_tokens": 12, "temperature": 0.0}
    with t5.server.client() as client:
        plain = client.generate(TEXTS[0], adapter="lora", **options)
        assert plain.token_ids == written(generated(model, source, 12, repetition_penalty=1.5)[0])
        ids = torch.tensor([[0, *begin]])
        wanted = generated(model, source, 12, repetition_penalty=1.5, decoder_input_ids=ids)[0]
        for given in ("Eine ", begin, [0, *begin]):
            found = client.generate(TEXTS[0], adapter="lora", decoder_prompt=given, **options)
            assert found.token_ids == written(wanted, len(begin))
        drawn = client.generate(TEXTS[0], n=2, seed=3, max_tokens=6)
        one, other = (each.token_ids for each in drawn.completions)
        assert one != other
        assert client.generate(TEXTS[0], seed=4, max_tokens=6).token_ids == other
        predicted = client.generate(TEXTS[0], adapter="lora", prediction=plain.text, **options)
        assert predicted.token_ids == plain.token_ids
        form = client.generate(TEXTS[0], choice=["yes", "no"], max_tokens=8)
        assert form.text in ("yes", "no")


@pytest.mark.parametrize("penalty", [0.6, 2.0])
def test_beams_are_those_of_transformers(t5: Writers, nllb: Writers, penalty: float) -> None:
    for writers, tokenizer, num_begun in (
        (t5, ending_tokenizer(), 0),
        (nllb, language_tokenizer(), 1),
    ):
        source = tokenizer(TEXTS[2]).input_ids
        options: dict[str, Any] = {
            "num_beams": 4, "num_return_sequences": 3, "output_scores": True,
            "return_dict_in_generate": True, "length_penalty": penalty,
        }  # fmt: skip
        with writers.server.client() as client:
            for name in (None, "lora"):
                model, num_tokens = writers.models[name], NUM_TOKENS + num_begun
                liked = generated(model, source, num_tokens, **options)
                ends = sorted({END, liked[0][4], liked[1][3], liked[2][-2]})
                wanted = generated(
                    model, source, num_tokens, eos_token_id=ends, pad_token_id=0, **options
                )
                answer = client.generate(
                    TEXTS[2], adapter=name, num_beams=4, n=3, max_tokens=NUM_TOKENS,
                    length_penalty=penalty, stop_token_ids=ends,
                )  # fmt: skip
                for completion, row in zip(answer.completions, wanted, strict=True):
                    tokens = row[num_begun:]
                    length = next((i + 1 for i, t in enumerate(tokens) if t in ends), len(tokens))
                    assert completion.token_ids == tuple(tokens[:length])


def test_what_is_read_and_what_is_written_have_room_of_their_own(t5: Writers) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        (
            {"prompt": [7] * 65},
            "prompt_token_ids has 65 tokens; expected at most 64, the input length of the base "
            "model",
            "prompt_token_ids",
        ),
        (
            {"prompt": "a" * 64},
            "prompt has 65 tokens; expected at most 64, the input length of the base model",
            "prompt",
        ),
        (
            {"prompt": "a", "max_tokens": 65},
            "sampling.max_tokens is 65; expected an integer from 1 to 64",
            "sampling.max_tokens",
        ),
        (
            {"prompt": "a", "max_tokens": 62, "decoder_prompt": "bc"},
            "sampling.max_tokens is 62; after a decoder prompt of 3 tokens the output length of "
            "64 leaves room for 61",
            "sampling.max_tokens",
        ),
        (
            {"prompt": "a", "decoder_prompt": [7] * 63},
            "decoder_prompt_token_ids has 64 tokens with the decoder's own; the output length of "
            "64 leaves no room for a completion",
            "decoder_prompt_token_ids",
        ),
        (
            {"prompt": "a", "decoder_prompt": [900]},
            "decoder_prompt_token_ids holds token 900; expected ids from 0 to 263",
            "decoder_prompt_token_ids",
        ),
        (
            {"prompt": "a", "prompt_logprobs": 1},
            "sampling.prompt_logprobs is 1; expected none: the base model, "
            "T5ForConditionalGeneration, reads the prompt with its encoder, which computes no "
            "log-probabilities",
            "sampling.prompt_logprobs",
        ),
    ]
    with t5.server.client() as client:
        for fields, message, field in cases:
            with pytest.raises(InvalidArgumentError) as caught:
                client.generate(**fields)
            assert (str(caught.value), caught.value.field) == (message, field)
        # A long text to read leaves as much to write as a short one.
        most = client.generate([7] * 64, ignore_eos=True, temperature=0.0)
        assert most.usage.completion_tokens == 63
        model = t5.models[None]
        long = generated(model, [7] * 64, 63, eos_token_id=None)[0]
        assert most.token_ids == tuple(long)
        # Embeddings of adapters go before what is read, keys and values before what is written.
        options: dict[str, Any] = {"ignore_eos": True, "temperature": 0.0}
        for name, num_read, num_written in (("prompt", 60, 63), ("prefix", 64, 59)):
            full = client.generate([7] * num_read, adapter=name, **options)
            assert full.usage.completion_tokens == num_written
        with pytest.raises(InvalidArgumentError, match="has 61 tokens and 4 virtual tokens of th"):
            client.generate([7] * 61, adapter="prompt")
        with pytest.raises(
            InvalidArgumentError, match="the output length of 64 leaves room for 59"
        ):
            client.generate([7], adapter="prefix", max_tokens=60)


def test_nothing_is_labelled_or_embedded(t5: Writers) -> None:
    reported = (
        "the base model, T5ForConditionalGeneration, is an encoder-decoder: it generates "
        "text and does not classify or embed it; call loramux.v1.GenerationService.Generate"
    )
    with t5.server.client() as client:
        for call in (
            lambda: client.embed("a"),
            lambda: client.classify("a", adapter="lora"),
            lambda: client.answer("a", "b", adapter="lora"),
        ):
            with pytest.raises(FailedPreconditionError) as caught:
                call()
            assert (str(caught.value), caught.value.reason) == (reported, "BASE_ONLY_WRITES")


def test_what_a_text_begins_with_is_the_request_s_the_adapter_s_or_the_base_s(
    nllb: Writers,
) -> None:
    tokenizer = language_tokenizer()
    source = tokenizer(TEXTS[0]).input_ids
    config = nllb.models[None].generation_config
    forbidden = {config.bad_words_ids[0][0], *config.suppress_tokens}  # type: ignore[union-attr,index,misc]
    with nllb.server.client() as client:
        for name, forced, given in (
            (None, FRENCH, {}),
            ("lora", FRENCH, {}),
            ("german", GERMAN, {}),
            ("german", FRENCH, {"decoder_prompt": [FRENCH]}),
            (None, GERMAN, {"decoder_prompt": "deu_Latn", "parse_special_tokens": True}),
        ):
            model = nllb.models[name]
            wanted = generated(model, source, NUM_TOKENS + 1, forced_bos_token_id=forced)[0]
            assert wanted[0] == forced
            answer = client.generate(TEXTS[0], adapter=name, **GREEDY, **given)
            assert answer.token_ids == written(wanted, 1)
            assert not forbidden & {*answer.token_ids}
        drawn = client.generate(
            TEXTS[0], n=8, max_tokens=40, logit_bias=dict.fromkeys(forbidden, 100.0), seed=1
        )
        assert not forbidden & {token for each in drawn.completions for token in each.token_ids}
        assert drawn.sampling["logit_bias"] == dict.fromkeys(forbidden, 100.0)


def test_a_gateway_takes_what_a_text_begins_with_and_reports_nothing_of_prompts(
    nllb: Writers,
) -> None:
    with nllb.server.client() as client:
        wanted = client.generate(TEXTS[0], adapter="lora", decoder_prompt=[GERMAN], **GREEDY)
    body = {"model": "lora", "prompt": TEXTS[0], **GREEDY, "return_token_ids": True}
    with RunningGateway(nllb.folder / "gateway", nllb.server.target) as gateway:
        for more in (
            {"decoder_prompt": [GERMAN]},
            {"decoder_prompt": "deu_Latn", "parse_special_tokens": True},
        ):
            answer = gateway.post("/v1/completions", body | more)
            (choice,) = answer.json["choices"]
            assert tuple(choice["token_ids"]) == wanted.token_ids
            assert answer.json["usage"]["prompt_tokens"] == wanted.usage.prompt_tokens
        for field, value, said in (
            ("echo", True, "M2M100ForConditionalGeneration, does not continue the prompt"),
            ("prompt_logprobs", 1, "reads the prompt with its encoder"),
        ):
            refused = gateway.post("/v1/completions", body | {field: value})
            assert (refused.status, refused.error["param"]) == (400, field)
            assert said in refused.error["message"]


def test_commands_take_it(
    nllb: Writers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with nllb.server.client() as client:
        wanted = client.generate(TEXTS[0], adapter="lora", decoder_prompt=[GERMAN], **GREEDY)

    def reported(*arguments: str) -> str:
        command = ["loramux", *arguments, f"--server={nllb.server.target}"]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit, match="0"):
            run()
        return capsys.readouterr().out

    answer = json.loads(
        reported(
            "generate", TEXTS[0], "-a", "lora", f"--max-tokens={NUM_TOKENS}", "--temperature=0",
            "--decoder-prompt=deu_Latn", "--parse-special-tokens", "--json",
        )
    )  # fmt: skip
    assert tuple(answer["completions"][0]["token_ids"]) == wanted.token_ids
    body = {"model": "lora", "prompt": TEXTS[0], "decoder_prompt": [GERMAN], **GREEDY}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    (tmp_path / "asked.jsonl").write_text(json.dumps(line))
    reported("batch", str(tmp_path / "asked.jsonl"), "-o", str(tmp_path / "answers.jsonl"))
    response = json.loads((tmp_path / "answers.jsonl").read_text())["response"]
    assert response["body"]["choices"][0]["text"] == wanted.text


def test_the_open_inference_protocol_gives_what_is_written_alone(nllb: Writers) -> None:
    with nllb.server.client() as client:
        wanted = client.generate(TEXTS[0], decoder_prompt=[GERMAN], adapter="lora", **GREEDY)
    asked: dict[str, Any] = {"decoder_prompt": "deu_Latn", "parse_special_tokens": True, **GREEDY}
    with grpc.insecure_channel(nllb.server.target) as channel:
        response = call(channel, "ModelInfer", asking("lora", TEXTS[0], parameters=asked))
        assert texts_of(response) == [wanted.text]
        flags = {"exclude_input_in_output": False}
        with pytest.raises(
            grpc.RpcError, match="no value because the base model is an encoder-decoder"
        ):
            call(channel, "ModelInfer", asking("lora", "a", parameters=asked, flags=flags))


def test_adapters_that_do_not_fit_are_refused_by_name(t5: Writers, tmp_path: Path) -> None:
    own = t5.models[None]
    assert isinstance(own, PreTrainedModel)
    refused: dict[str, tuple[PeftConfig, str]] = {
        "decoder's": (
            PromptTuningConfig(
                task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1
            ),
            "submodules is 1, but the base model has 2",
        ),
        "embeddings": (
            LoraConfig(target_modules=["shared"], **LORA),
            "shared is not an adaptable layer of the base model",
        ),
        "tokens": (
            LoraConfig(target_modules=["q"], trainable_token_indices={"shared": [3]}, **LORA),
            "shared.weight is not a parameter of the base model that an adapter can replace",
        ),
        "head": (
            LoraConfig(target_modules=["q"], modules_to_save=["lm_head"], **LORA),
            "lm_head.* not .* of the base model",
        ),
        "features": (
            LoraConfig(target_modules=["q"], r=2, task_type="FEATURE_EXTRACTION"),
            "task_type FEATURE_EXTRACTION; the base model is an encoder-decoder",
        ),
    }
    with t5.server.client() as client:
        for seed, (name, (config, message)) in enumerate(refused.items()):
            save_tuned(own, config, tmp_path / name, seed=seed)
            with pytest.raises((PackageError, LoramuxError), match=message):
                client.adapters.upload("refused", tmp_path / name)
