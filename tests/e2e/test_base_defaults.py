"""What a base model wants of requests that leave it open, and what it is called."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from loramux import Client
from loramux.cli.app import run
from tests.support.open_inference import asking, call, texts_of
from tests.support.server import RunningServer

OF_BASE: dict[str, Any] = {
    "do_sample": True, "temperature": 0.25, "top_p": 0.75, "top_k": 7, "min_p": 0.125,
    "repetition_penalty": 1.5, "max_new_tokens": 9, "num_beams": 1,
}  # fmt: skip
SAMPLING: dict[str, Any] = {
    "temperature": 0.25, "top_p": 0.75, "top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5,
    "max_tokens": 9,
}  # fmt: skip
NAMES = ["gpt-4", "plain"]
"""What the base is called; an adapter has one of the names, too."""


def with_config(base: Path, folder: Path, config: dict[str, Any]) -> Path:
    """Return a copy of `base` in `folder` with `config` for its generation config."""
    shutil.copytree(base, folder)
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, chat_folders: dict[str, Path]
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("defaults")
    base = with_config(chat_folders["base"], folder / "Tiny-1B", OF_BASE)
    for name in ("plain", "own"):
        shutil.copytree(chat_folders[name], folder / "adapters" / name)
    (folder / "adapters" / "own" / "generation_config.json").write_text(
        json.dumps({"temperature": 0.5, "max_new_tokens": 4})
    )
    names = (f"--served-model-name={name}" for name in NAMES)
    with RunningServer(folder, base, "--adapters", str(folder / "adapters"), *names) as server:
        yield server


def reported_defaults(sampling: Any, names: Any = SAMPLING) -> dict[str, Any]:
    return {name: pytest.approx(sampling[name]) for name in names}


def test_the_request_counts_before_the_adapter_and_that_before_the_base(client: Client) -> None:
    for adapter in (None, "plain"):
        answer = client.generate("hello", adapter=adapter, ignore_eos=True)
        assert reported_defaults(answer.sampling) == SAMPLING
        assert answer.usage.completion_tokens == 9
    own = client.generate("hello", adapter="own", ignore_eos=True)
    assert reported_defaults(own.sampling) == SAMPLING | {"temperature": 0.5, "max_tokens": 4}
    given: dict[str, Any] = {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "max_tokens": 3,
    }  # fmt: skip
    assert reported_defaults(client.generate("hello", adapter="own", **given).sampling) == given


def test_the_reported_parameters_are_those_applied(client: Client) -> None:
    open_, given = (
        client.generate("hello", seed=5, ignore_eos=True, **more) for more in ({}, SAMPLING)
    )
    neutral = client.generate(
        "hello", seed=5, ignore_eos=True, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0,
        repetition_penalty=1.0,
    )  # fmt: skip
    assert open_.token_ids == given.token_ids != neutral.token_ids


def test_of_a_base_s_defaults_a_search_has_its_length_alone(client: Client) -> None:
    found = client.generate("hello", num_beams=2, ignore_eos=True)
    wanted = client.generate("hello", num_beams=2, ignore_eos=True, max_tokens=9)
    assert found.token_ids == wanted.token_ids
    assert found.sampling["repetition_penalty"] == 1.0


def test_the_base_has_the_names_that_it_was_given_and_these_go_first(
    server: RunningServer, client: Client, openai_client: openai.OpenAI
) -> None:
    info = client.info()
    assert [info.base_model, *info.base_aliases] == NAMES
    assert [model.id for model in openai_client.models.list()] == [*NAMES, "own", "public/plain"]
    asked: dict[str, Any] = {"prompt": "hello", "temperature": 0}
    texts = {}
    for name, reported in (("gpt-4", "gpt-4"), ("plain", "gpt-4"), ("public/plain",) * 2):
        assert openai_client.models.retrieve(name).id == name
        answer = openai_client.completions.create(model=name, **asked)
        assert answer.model == reported
        texts[name] = answer.choices[0].text
    assert texts["plain"] == texts["gpt-4"] != texts["public/plain"]
    assert (
        openai_client.responses.create(model="plain", input="hi", max_output_tokens=2).model
        == "gpt-4"
    )
    said = {"model": "plain", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}
    message: Any = openai_client.post("/messages", body=said, cast_to=object)
    assert message["model"] == "gpt-4"
    mix: dict[str, Any] = {"adapters": [{"name": "plain", "scale": 1.0}]}
    mixed = openai_client.completions.create(model="plain", extra_body=mix, **asked)
    assert mixed.choices[0].text == texts["public/plain"]
    for name in ("base", "gpt-4o"):
        with pytest.raises(openai.NotFoundError):
            openai_client.completions.create(model=name, **asked)
    with grpc.insecure_channel(server.target) as channel:
        found = [
            texts_of(
                call(channel, "ModelInfer", asking(name, "hello", parameters={"temperature": 0}))
            )
            for name in (*NAMES, "public/plain")
        ]
    assert found[0] == found[1] != found[2]
    # Where a field can mean nothing but an adapter, it does.
    own = client.generate("hello", adapter="plain", temperature=0)
    assert own.text == texts["public/plain"]
    warning = "the base model and an adapter of tenant public are both named plain"
    assert server.log.read_text().replace("\n", " ").count(warning) == 1


def test_a_request_may_have_many_completions(client: Client, openai_client: openai.OpenAI) -> None:
    done = client.generate("hello", n=64, max_tokens=2, ignore_eos=True, seed=1, temperature=5)
    assert [completion.index for completion in done.completions] == list(range(64))
    assert done.usage.completion_tokens == 128
    answer = openai_client.completions.create(model="gpt-4", prompt="hello", n=40, max_tokens=1)
    assert len(answer.choices) == 40


def test_an_adapter_of_another_base_is_reported(
    server: RunningServer,
    client: Client,
    chat_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loramux(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["loramux", *arguments])
        with pytest.raises(SystemExit, match=r"^0$"):
            run()
        return capsys.readouterr()

    folder = shutil.copytree(chat_folders["plain"], tmp_path / "stray")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/Other-1B"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    _, errors = loramux("push", str(folder), "--server", server.target)
    why = "its config names the base model 'org/Other-1B', but this one is 'Tiny-1B'"
    warning = f"stray:1 seems to be made for another base model: {why}"
    assert errors == f"loramux: warning: {warning}\n"
    assert client.adapters.get("stray").other_base == why
    assert client.adapters.get("own").other_base == ""
    assert f"stray seems to be made for another base model: {why}" in server.log.read_text()
    client.adapters.delete("stray")
    for base, wanted in (
        (chat_folders["base"], None),
        (shutil.copytree(chat_folders["base"], tmp_path / "Tiny-1B"), f"warning: {why}"),
    ):
        output, _ = loramux("verify", str(folder), "--base", str(base), "--json")
        assert json.loads(output).get("base name") == wanted
