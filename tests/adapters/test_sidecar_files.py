"""The chat template and the generation defaults that a package keeps, and where they come from."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from loramux_adapters import PackageError, open_package
from loramux_adapters.generation import FIELDS, INTEGERS, NUMBERS, TOKENS, check_generation
from loramux_adapters.generation_config import (
    HONOURED,
    RECORDED,
    REFUSED,
    base_defaults_of,
    defaults_of,
)
from loramux_adapters.manifest import MAX_TEMPLATE_BYTES
from tests.support.command_line import Loramux


def notes_of(path: str | Path) -> dict[str, Any]:
    with open_package(Path(path)) as (_, package):
        return {name: note for name, note in package.notes.items() if name != "tensors"}


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        file = folder / name.replace("__", ".")
        file.write_text(content if isinstance(content, str) else json.dumps(content))


def test_pack_keeps_the_template_and_the_defaults_of_the_folder(poet: Path) -> None:
    write(
        poet,
        chat_template__jinja="{{ messages }}",
        tokenizer_config__json={"chat_template": "not this"},
        generation_config__json={"temperature": 0.5, "max_new_tokens": 9, "use_cache": True},
    )
    assert notes_of(poet) == {
        "chat_template": "{{ messages }}",
        "generation": {"max_tokens": 9, "temperature": 0.5},
    }


@pytest.mark.parametrize("template", [
    "{{ messages }}",
    [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ messages }}"}],
])  # fmt: skip
def test_a_template_is_taken_from_the_config_of_the_tokenizer(poet: Path, template: Any) -> None:
    write(poet, tokenizer_config__json={"model_max_length": int(1e30), "chat_template": template})
    assert notes_of(poet) == {"chat_template": "{{ messages }}"}


def test_a_folder_without_either_has_neither(poet: Path) -> None:
    write(poet, tokenizer_config__json={"pad_token": "<s>"}, generation_config__json={})
    assert notes_of(poet) == {}


def test_notes_beside_the_adapter_go_before_other_files(poet: Path) -> None:
    write(
        poet,
        loramux__json={"chat_template": "{{ 1 }}", "generation": {"top_k": 3}},
        chat_template__jinja="{{ 2 }}",
        generation_config__json={"num_beams": 4},
    )
    assert notes_of(poet) == {"chat_template": "{{ 1 }}", "generation": {"top_k": 3}}


@pytest.mark.parametrize(("files", "message"), [
    ({"chat_template__jinja": ""}, "chat_template has 0 bytes"),
    ({"chat_template__jinja": "x" * (MAX_TEMPLATE_BYTES + 1)}, "chat_template.jinja is above"),
    ({"tokenizer_config__json": "{"}, "tokenizer_config.json is not valid JSON"),
    ({"tokenizer_config__json": {"chat_template": 7}}, "chat_template is 7; expected a template"),
    ({"tokenizer_config__json": {"chat_template": [{"name": "rag"}]}}, "named 'default'"),
    ({"generation_config__json": {"temperature": "hot"}}, "temperature is 'hot'; expected a num"),
    ({"generation_config__json": {"do_sample": 1}}, "do_sample is 1; expected true or false"),
    ({"generation_config__json": {"num_beams": 4}}, "'num_beams' = 4 is not supported; remove"),
    ({"generation_config__json": {"later": 1}}, "'later' = 1 is not a known field; remove"),
    ({"loramux__json": {"generation": {"seed": 1}}}, "'seed' is not a generation default"),
])  # fmt: skip
def test_what_cannot_be_kept_is_named(poet: Path, files: dict[str, Any], message: str) -> None:
    write(poet, **files)
    with pytest.raises(PackageError, match=message), open_package(poet):
        pass


def test_every_field_of_transformers_is_honoured_recorded_or_refused() -> None:
    known = {*HONOURED, *RECORDED, *REFUSED}
    assert set(vars(GenerationConfig())) - known == {"_commit_hash", "_original_object_hash"} & set(
        vars(GenerationConfig())
    )
    assert len(known) == len(HONOURED) + len(RECORDED) + len(REFUSED)


def test_what_transformers_saves_of_an_untouched_config_changes_nothing(tmp_path: Path) -> None:
    GenerationConfig().save_pretrained(str(tmp_path))
    assert defaults_of(json.loads((tmp_path / "generation_config.json").read_text())) == {}


def test_fields_of_transformers_become_sampling_parameters() -> None:
    config = {
        "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05,
        "repetition_penalty": 1.1, "max_new_tokens": 64, "min_new_tokens": 2,
        "stop_strings": "END", "eos_token_id": 7, "num_beams": 1, "max_length": 20,
        "decoder_start_token_id": 2, "forced_bos_token_id": 9,
    }  # fmt: skip
    assert defaults_of(config) == {
        "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.1,
        "max_tokens": 64, "min_tokens": 2, "stop": ["END"], "stop_token_ids": [7],
        "decoder_start_token_id": 2, "forced_bos_token_id": 9,
    }  # fmt: skip


def test_without_sampling_the_likeliest_token_is_taken() -> None:
    config = {"do_sample": False, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    assert defaults_of(config) == {"temperature": 0.0, "repetition_penalty": 1.1}


@pytest.mark.parametrize(("config", "defaults", "left_out"), [
    (
        {
            "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05,
            "repetition_penalty": 1.05, "presence_penalty": 1.5, "max_new_tokens": 2048,
            "eos_token_id": [2, 7], "transformers_version": "4.51.0", "later": 1,
        },
        {
            "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05,
            "repetition_penalty": 1.05, "presence_penalty": 1.5, "max_tokens": 2048,
        },
        [],
    ),
    ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6}, []),
    ({"do_sample": False, "top_k": 20, "repetition_penalty": 1.1},
     {"temperature": 0.0, "repetition_penalty": 1.1}, []),
    ({"num_beams": 4, "no_repeat_ngram_size": 3, "max_length": 142, "min_length": 0,
      "forced_bos_token_id": 0, "temperature": None, "stop_strings": ["END"]},
     {}, ["max_length", "no_repeat_ngram_size", "num_beams", "stop_strings"]),
])  # fmt: skip
def test_a_base_has_the_defaults_that_vllm_takes(
    config: dict[str, Any], defaults: dict[str, Any], left_out: list[str]
) -> None:
    assert base_defaults_of(config) == (defaults, left_out)


def test_an_impossible_default_of_a_base_is_named() -> None:
    with pytest.raises(PackageError, match=r"tion_config\.json: top_p is 3; expected a number"):
        base_defaults_of({"top_p": 3})


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_a_refused_field_may_be_null(field: str) -> None:
    assert defaults_of({field: None}) == {}
    with pytest.raises(PackageError, match=f"'{field}'"):
        defaults_of({field: 77})


@pytest.mark.parametrize(("field", "value"), [
    *((name, value) for name in INTEGERS for value in (-2, 1 << 31, 1.5, "1", True)),
    *((name, value) for name in NUMBERS for value in (-3, 1e9, "1", True, float("nan"))),
    ("top_p", 0.0), ("top_p", 1.01),
    ("stop", "END"), ("stop", [""]), ("stop", ["x"] * 9), ("stop", ["x" * 257]), ("stop", [1]),
    ("stop_token_ids", [-1]), ("stop_token_ids", [True]), ("stop_token_ids", [1] * 129),
    ("stop_token_ids", 1),
    *((name, value) for name in TOKENS for value in (-1, 1 << 31, True, [1], "</s>")),
])  # fmt: skip
def test_a_default_out_of_its_limits_is_named(field: str, value: object) -> None:
    assert field in FIELDS
    with pytest.raises(PackageError, match=f"here: {field} is .* expected") as caught:
        check_generation({field: value}, "here")
    assert caught.value.reason == "INVALID_ADAPTER_CONFIG"


def test_least_and_most_tokens_have_to_agree() -> None:
    with pytest.raises(PackageError, match="min_tokens is 9; expected at most max_tokens, 4"):
        check_generation({"min_tokens": 9, "max_tokens": 4}, "here")


def test_options_of_pack_go_before_all(loramux: Loramux, poet: Path) -> None:
    write(poet, chat_template__jinja="{{ 1 }}", generation_config__json={"top_k": 3})
    Path("mine.jinja").write_text("{{ 2 }}")
    Path("mine.json").write_text(json.dumps({"top_p": 0.5, "stop_strings": ["A"]}))
    done = loramux(
        "pack", "poet", "--chat-template", "mine.jinja", "--generation-config", "mine.json",
        "--default", "temperature=0.2", "--default", "stop=B", "--default", "max_tokens=7",
    )  # fmt: skip
    assert done.code == 0
    assert notes_of("poet.safetensors") == {
        "chat_template": "{{ 2 }}",
        "generation": {"max_tokens": 7, "stop": ["A", "B"], "temperature": 0.2, "top_p": 0.5},
    }


def test_options_of_pack_leave_out_what_the_folder_has(loramux: Loramux, poet: Path) -> None:
    write(poet, chat_template__jinja="{{ 1 }}", generation_config__json={"num_beams": 4})
    options = ("--chat-template", "none", "--generation-config", "none")
    assert loramux("pack", "poet", *options).code == 0
    assert notes_of("poet.safetensors") == {}


@pytest.mark.parametrize(("options", "message"), [
    (("--default", "temperature"), "'temperature' is not FIELD=VALUE"),
    (("--default", "temperature=hot"), "temperature is 'hot'; expected a number"),
    (("--default", "colour=1"), "'colour' is not a generation default"),
    (("--chat-template", "missing.jinja"), "no readable missing.jinja"),
])  # fmt: skip
def test_a_mistake_in_an_option_is_one_line(
    loramux: Loramux, poet: Path, options: tuple[str, ...], message: str
) -> None:
    done = loramux("pack", "poet", *options)
    assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
    assert message in done.errors


def test_inspect_shows_both(loramux: Loramux, poet: Path) -> None:
    write(poet, chat_template__jinja="{{ 1 }}", generation_config__json={"top_k": 3})
    lines = loramux("inspect", "poet").output.splitlines()
    assert "chat_template {{ 1 }}" in lines
    assert 'generation {"top_k": 3}' in lines
