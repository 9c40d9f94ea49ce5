"""Heads of classification in packages: what is read of them, and what they mean."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from loramux_adapters import PackageError, check_fit, open_package
from loramux_adapters.base_names import named_for
from loramux_adapters.head import MAX_LABELS, Task
from loramux_adapters.kinds import read_contents
from loramux_adapters.labels import ProblemType
from loramux_adapters.package import read_package
from loramux_adapters.plain import require_low_rank
from loramux_adapters.token_shape import TokenShape
from loramux_adapters.unpack import unpack
from tests.adapters.files import (
    CONFIG,
    TENSORS,
    Tensors,
    header,
    manifest,
    tensor_file,
    write_folder,
)
from tests.adapters.test_contents import FILE, IA3, INVALID, LORA, infos
from tests.support.command_line import Loramux
from tests.support.models import tiny_model

P = "base_model.model."
UNSUPPORTED = "UNSUPPORTED_ADAPTER_FEATURE"
TEXTS = CONFIG | {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
TOKENS = TEXTS | {"task_type": "TOKEN_CLS"}
SPANS = CONFIG | {"task_type": "QUESTION_ANS", "modules_to_save": ["qa_outputs"]}
SCORE = f"{P}score.weight"
PROMPT = {
    "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "token_dim": 4, "task_type": "SEQ_CLS",
}  # fmt: skip


def with_head(num_labels: int = 3, **more: list[int]) -> Tensors:
    shapes = {
        SCORE: [num_labels, 4],
        **{P + name.replace("__", "."): s for name, s in more.items()},
    }
    found = dict(TENSORS)
    for name, shape in shapes.items():
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        found[name] = ("F32", shape, struct.pack(f"<{size}f", *range(size)))
    return found


def with_spans() -> Tensors:
    found = with_head(2)
    return {name.replace("score", "qa_outputs"): each for name, each in found.items()}


def test_a_head_is_no_change_of_the_base() -> None:
    for name in ("score", "classifier"):
        shapes = LORA | {f"{P}{name}.weight": [3, 4], f"{P}{name}.bias": [3]}
        _, contents = read_contents(TOKENS, infos(shapes))
        head = contents.head
        assert head is not None
        assert (head.task, head.num_labels, head.width) == (Task.TOKENS, 3, 4)
        assert [tensor.name for tensor in head.tensors] == [f"{P}{name}.weight", f"{P}{name}.bias"]
        assert not contents.edits
        assert not contents.has_more
        assert contents.changed_modules == ["model.layers.0.self_attn.q_proj"]


def test_what_peft_saves_twice_counts_once() -> None:
    # With bias="all", PEFT saves what the head was before, and a copy of what it is.
    again = {f"{P}score.original_module.bias": [3], f"{P}score.modules_to_save.bias": [3]}
    shapes = LORA | {SCORE: [3, 4], f"{P}score.bias": [3]} | again
    _, contents = read_contents(TOKENS | {"bias": "all"}, infos(shapes))
    assert contents.head is not None
    assert contents.head.bias is not None
    assert contents.head.bias.name == f"{P}score.bias"


def test_other_modules_that_were_trained_whole_stay_edits() -> None:
    config = TEXTS | {"modules_to_save": ["norm", "classifier", "score"]}
    shapes = LORA | {SCORE: [3, 4], f"{P}model.norm.weight": [4]}
    _, contents = read_contents(config, infos(shapes))
    assert [edit.module for edit in contents.edits] == ["model.norm"]
    assert contents.head is not None


@pytest.mark.parametrize(
    ("config", "shapes", "reason", "message"),
    [
        (TEXTS, LORA, UNSUPPORTED, "is not supported: there is no head ('score.weight' or"),
        (TEXTS, LORA | {SCORE: [4]}, FILE, "score.weight: shape [4] is not [labels, width]"),
        (TEXTS, LORA | {SCORE: [MAX_LABELS + 1, 4]}, FILE, f"1 to {MAX_LABELS} labels"),
        (TEXTS, LORA | {SCORE: [3, 4], f"{P}score.bias": [4]}, FILE, "shape [4] is not [3]"),
        (TEXTS, LORA | {SCORE: [3, 4], f"{P}classifier.weight": [3, 4]}, FILE, "to two heads"),
        (TEXTS, LORA | {f"{P}classifier.dense.bias": [4]}, UNSUPPORTED, "there is no head"),
        (TEXTS, LORA | {f"{P}classifier.dense.weight": [4, 4], f"{P}classifier.out.weight": [3, 4],
                        f"{P}classifier.out.bias": [2]}, FILE, "out.bias: shape [2] is not [3]"),
        (TEXTS, LORA | {f"{P}classifier.dense.lora_A.weight": [2, 4]}, UNSUPPORTED,
         "classifier.dense.lora_A.weight is not supported: a head must be"),
        (TEXTS, LORA | {f"{P}score.lora_A.weight": [2, 4], f"{P}score.lora_B.weight": [3, 2]},
         UNSUPPORTED, "score.lora_A.weight is not supported: a head must be"),
        (SPANS, LORA | {SCORE: [2, 4]}, UNSUPPORTED,
         "is not supported: there is no head ('qa_outputs.weight' or 'classifier.weight')"),
        (SPANS, LORA | {f"{P}qa_outputs.weight": [3, 4]}, FILE,
         "qa_outputs.weight: shape [3, 4] is not [2, width], with one output for"),
        (SPANS, LORA | {f"{P}qa_outputs.weight": [2, 4], f"{P}qa_outputs.bias": [3]}, FILE,
         "shape [3] is not [2], one value per output"),
        (TEXTS | {"alora_invocation_tokens": [1]}, LORA | {SCORE: [3, 4]}, UNSUPPORTED,
         "alora_invocation_tokens needs 'CAUSAL_LM'"),
        (PROMPT, {"prompt_embeddings": [2, 4], "base_model.norm.weight": [4]}, UNSUPPORTED,
         "'SEQ_CLS' is not supported: there is no head"),
        (IA3 | {"task_type": "TOKEN_CLS"}, {f"{P}model.layers.0.self_attn.q_proj.ia3_l": [3, 1]},
         UNSUPPORTED, "'TOKEN_CLS' is not supported: there is no head"),
    ],
)  # fmt: skip
def test_what_is_no_head_is_refused(
    config: dict[str, Any], shapes: dict[str, list[int]], reason: str, message: str
) -> None:
    with pytest.raises(PackageError) as caught:
        read_contents(config, infos(shapes))
    assert message in str(caught.value)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("shapes", "last"),
    [
        ({"out_proj.weight": [3, 4], "dense.weight": [4, 4]}, "out_proj"),
        ({"out_proj.weight": [4, 4], "dense.weight": [4, 4]}, "out_proj"),
        ({"a.weight": [3, 8], "b.weight": [8, 4], "norm.weight": [8]}, "a"),
        ({"linear_hidden.weight": [8, 4], "linear_out.weight": [8, 8]}, "linear_out"),
    ],
)
def test_labels_are_what_the_last_layer_of_a_head_makes(
    shapes: dict[str, list[int]], last: str
) -> None:
    found = {f"{P}classifier.{name}": shape for name, shape in shapes.items()}
    _, contents = read_contents(TEXTS, infos(LORA | found))
    head = contents.head
    assert head is not None
    assert not head.is_linear
    assert (head.module, head.num_labels) == (f"classifier.{last}", shapes[f"{last}.weight"][0])
    assert {tensor.name for tensor in head.tensors} == found.keys()
    assert not contents.edits


def test_what_peft_saves_twice_of_a_head_of_layers_counts_once() -> None:
    sizes = {"dense": 4, "out_proj": 3}
    own = {f"{P}classifier.{part}.weight": [size, 4] for part, size in sizes.items()}
    own |= {f"{P}classifier.{part}.bias": [size] for part, size in sizes.items()}
    again = {
        f"{P}classifier.{copy}.{part}.bias": [size]
        for copy in ("original_module", "modules_to_save.default")
        for part, size in sizes.items()
    }
    _, contents = read_contents(TEXTS | {"bias": "all"}, infos(LORA | own | again))
    assert contents.head is not None
    assert {tensor.name for tensor in contents.head.tensors} == own.keys()


def test_a_head_of_a_decoder_is_one_linear_layer() -> None:
    layers = {f"{P}classifier.dense.weight": [4, 4], f"{P}classifier.out_proj.weight": [3, 4]}
    _, contents = read_contents(TEXTS, infos(LORA | layers))
    base = {"model.layers.0.self_attn.q_proj": (4, 3)}
    check_fit(contents, base, token=TokenShape(4, ()))  # it may be one of an encoder
    with pytest.raises(PackageError) as caught:
        check_fit(contents, base, token=TokenShape(4, ()), heads={})
    assert "classifier.dense.weight is not supported: a head must be one linear layer" in str(
        caught.value
    )
    assert caught.value.reason == UNSUPPORTED


def test_a_head_has_to_be_as_wide_as_the_base() -> None:
    _, contents = read_contents(TEXTS, infos(LORA | {SCORE: [3, 8]}))
    base = {"model.layers.0.self_attn.q_proj": (4, 3)}
    check_fit(contents, base, token=TokenShape(8, ()))
    with pytest.raises(PackageError, match="the head takes 8 values per token") as caught:
        check_fit(contents, base, token=TokenShape(4, ()))
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"


def test_only_low_rank_changes_are_calculated_with(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", with_head(), TEXTS)
    with (
        open_package(folder) as (_, package),
        pytest.raises(
            PackageError, match=r"merge supports low-rank updates only, but the adapter has a h"
        ),
    ):
        require_low_rank(package, "merge")


def test_labels_have_the_names_of_the_config_of_the_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", with_head(), TEXTS)
    names = {0: "bad", 1: "so-so", 2: "good"}
    config = tiny_model("llama").config
    config.num_labels, config.id2label, config.pad_token_id = 3, names, 0
    config.problem_type = "multi_label_classification"
    AutoModelForSequenceClassification.from_config(config).config.save_pretrained(str(folder))
    with open_package(folder) as (file, package):
        assert package.labels is not None
        assert package.labels.names == ("bad", "so-so", "good")
        assert package.labels.problem is ProblemType.MULTI_LABEL
        before = file.seek(0) or file.read()
        unpack(file, package, tmp_path / "b")
    with open_package(tmp_path / "b") as (file, _):
        file.seek(0)
        assert file.read() == before


@pytest.mark.parametrize(
    ("config", "num_labels", "problem"),
    [
        (TEXTS, 1, ProblemType.REGRESSION),
        (TEXTS, 3, ProblemType.SINGLE_LABEL),
        (TOKENS, 1, ProblemType.SINGLE_LABEL),
    ],
)
def test_labels_without_names_are_numbered(
    tmp_path: Path, config: dict[str, Any], num_labels: int, problem: ProblemType
) -> None:
    with open_package(write_folder(tmp_path / "a", with_head(num_labels), config)) as (_, package):
        assert package.labels is not None
        assert package.labels.names == tuple(f"LABEL_{i}" for i in range(num_labels))
        assert package.labels.problem is problem
        assert "classification" not in package.notes


def test_an_adapter_that_continues_text_has_no_use_for_that_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    (folder / "config.json").write_text("not JSON")
    with open_package(folder) as (_, package):
        assert (package.head, package.labels) == (None, None)


@pytest.mark.parametrize(
    ("note", "config", "message"),
    [
        (
            {"labels": ["a", "b"]},
            TEXTS,
            "labels has 2 names; the head (base_model.model.score.weig",
        ),
        ({"labels": []}, TEXTS, "labels is []; expected a list of 1 to 4096 names"),
        ({"labels": ["a", "", "c"]}, TEXTS, "labels has ''; expected names of 1 to 256"),
        ({"labels": "a,b,c"}, TEXTS, "labels is 'a,b,c'; expected a list"),
        ({"problem_type": "softmax"}, TEXTS, "expected one of single_label_classification, multi_"),
        ({"problem_type": 1}, TEXTS, "problem_type is 1; expected"),
        ({"names": []}, TEXTS, "'names' is not a known key; expected labels or"),
        (
            {"problem_type": "regression"},
            TOKENS,
            "for task_type TOKEN_CLS, one label per token",
        ),
        ({"labels": ["a"]}, CONFIG, "the note classification needs a"),
        ({"labels": ["a", "b"]}, SPANS, "the note classification needs a"),
    ],
)
def test_notes_of_labels_are_checked(note: dict[str, Any], config: Any, message: str) -> None:
    tensors = {id(CONFIG): TENSORS, id(SPANS): with_spans()}.get(id(config), with_head())
    text = manifest(config, classification=note)
    file = tensor_file(
        header(tensors, {"loramux.manifest": text}), b"".join(raw for _, _, raw in tensors.values())
    )
    with pytest.raises(PackageError) as caught:
        read_package(io.BytesIO(file), len(file))
    assert message in str(caught.value)
    assert caught.value.reason == INVALID


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "config.json: id2label is"),
        ({"id2label": ["a", "b", "c"]}, "config.json: id2label is"),
        ({"id2label": {"0": "a", "1": 1, "2": "c"}}, "config.json: labels has 1"),
        ({"id2label": {"0": "a", "1": "b"}}, "labels has 2 names"),
        ({"problem_type": "x"}, "config.json: problem_type is 'x'"),
        ("[", "config.json"),
    ],
)
def test_a_config_of_other_labels_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    folder = write_folder(tmp_path / "a", with_head(), TEXTS)
    (folder / "config.json").write_text(config if config == "[" else json.dumps(config))
    with pytest.raises(PackageError) as caught, open_package(folder):
        pass
    assert message in str(caught.value)


def test_pack_takes_names_from_the_command_line(tmp_path: Path, loramux: Loramux) -> None:
    folder = str(write_folder(tmp_path / "a", with_head(), TEXTS))
    config = {"id2label": {"0": "x", "1": "y", "2": "z"}, "problem_type": None}
    (Path(folder) / "config.json").write_text(json.dumps(config))
    output = str(tmp_path / "a.safetensors")
    done = loramux("pack", folder, "-o", output, "--labels", "bad,so-so,good")
    assert done.code == 0
    reported = json.loads(loramux("inspect", output, "--json").output)["head"]
    assert reported == {
        "task": "SEQ_CLS", "labels": ["bad", "so-so", "good"],
        "problem_type": "single_label_classification",
    }  # fmt: skip
    done = loramux("pack", folder, "-o", output, "--problem-type", "multi_label_classification")
    reported = json.loads(loramux("inspect", output, "--json").output)["head"]
    assert (reported["labels"], reported["problem_type"]) == (
        ["x", "y", "z"],
        "multi_label_classification",
    )
    assert "labels  3, SEQ_CLS, multi_label_classification" in loramux("inspect", output).output
    wrong = loramux("pack", folder, "-o", "b.safetensors", "--labels", "bad,good")
    assert (wrong.code, "labels has 2 names" in wrong.errors) == (1, True)
    plain = loramux("pack", str(write_folder(tmp_path / "c")), "--labels", "a,b")
    assert (plain.code, "needs a classification head" in plain.errors) == (1, True)


def test_a_head_of_spans_has_no_labels(tmp_path: Path, loramux: Loramux) -> None:
    folder = write_folder(tmp_path / "a", with_spans(), SPANS)
    # That of a model for question answering names two labels, which mean nothing.
    config = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    (folder / "config.json").write_text(json.dumps(config))
    with open_package(folder) as (_, package):
        assert package.head is not None
        assert package.head.task is Task.SPANS
        assert package.labels is None
        assert "classification" not in package.notes
    output = str(tmp_path / "a.safetensors")
    assert loramux("pack", str(folder), "-o", output).code == 0
    assert json.loads(loramux("inspect", output, "--json").output)["head"] == {
        "task": "QUESTION_ANS"
    }
    assert "task    QUESTION_ANS" in loramux("inspect", output).output


@pytest.mark.parametrize(
    ("task", "own", "there", "wanted"),
    [
        # As transformers calls the layers of Llama and Qwen2 below a head of spans.
        ("QUESTION_ANS", "transformer.layers.0.q_proj", "model.layers.0.q_proj", None),
        ("QUESTION_ANS", "transformer.h.0.q_proj", "transformer.h.0.q_proj", None),
        ("QUESTION_ANS", "transformer.h.0.q_proj", "model.layers.0.q_proj", "as it was"),
        ("FEATURE_EXTRACTION", "layers.0.q_proj", "model.layers.0.q_proj", None),
        ("FEATURE_EXTRACTION", "decoder.layers.0.q_proj", "model.decoder.layers.0.q_proj", None),
        ("FEATURE_EXTRACTION", "model.layers.0.q_proj", "model.layers.0.q_proj", None),
        ("FEATURE_EXTRACTION", "h.0.q_proj", "model.layers.0.q_proj", "as it was"),
        ("CAUSAL_LM", "layers.0.q_proj", "model.layers.0.q_proj", "as it was"),
        ("SEQ_CLS", "transformer.layers.0.q_proj", "model.layers.0.q_proj", "as it was"),
    ],
)
def test_modules_are_found_under_the_names_of_the_base(
    task: str, own: str, there: str, wanted: str | None
) -> None:
    head = {"QUESTION_ANS": {f"{P}qa_outputs.weight": [2, 4]}, "SEQ_CLS": {SCORE: [2, 4]}}
    saved = f"{own.partition('.')[0]}.norm" if task == "QUESTION_ANS" else "norm"
    shapes = {
        f"{P}{own}.lora_A.weight": [2, 4], f"{P}{own}.lora_B.weight": [3, 2],
        f"{P}{saved}.weight": [4], **head.get(task, {}),
    }  # fmt: skip
    config = CONFIG | {"task_type": task, "modules_to_save": ["norm", "qa_outputs", "score"]}
    _, contents = read_contents(config, infos(shapes))
    found = named_for(contents, ["lm_head", there])
    (module,), (edit,) = found.modules, found.edits
    if wanted is None:
        assert module.module == there
        assert edit.module == f"{there.partition('.')[0]}.norm" or there == own
    else:
        assert found == contents
    assert module.a.name == f"{P}{own}.lora_A.weight"  # what is told of it is what the file says
