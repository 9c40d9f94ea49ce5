"""A package becomes the folder that PEFT loads, and that folder the package again."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loramux_adapters import PackageError, open_package, pack, read_package, unpack
from loramux_adapters.package import digest_of
from tests.adapters.files import CONFIG, TENSORS, B, package, pair, write_folder
from tests.support.adapters import save_adapter, with_adapter
from tests.support.command_line import Loramux, Result
from tests.support.models import tiny_model


def packed(folder: Path) -> bytes:
    output = io.BytesIO()
    pack(folder, output)
    return output.getvalue()


def unpacked(content: bytes, folder: Path) -> Path:
    file = io.BytesIO(content)
    unpack(file, read_package(file, len(content)), folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}, id="plain"),
        pytest.param(
            {"r": 4, "use_rslora": True, "target_modules": "all-linear",
             "rank_pattern": {"layers.0.mlp.up_proj": 7, "up_proj": 2},
             "alpha_pattern": {"v_proj": 3}},
            id="patterns",
        ),
    ],
)  # fmt: skip
def test_peft_computes_the_same_from_an_unpacked_adapter(
    config: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    saved = save_adapter(model, tmp_path / "saved", seed=1, **config)
    content = packed(saved)
    again = unpacked(content, tmp_path / "again")
    prompt = torch.tensor([[1, 5, 9, 40]])
    with torch.inference_mode():
        before, after = (with_adapter(model, folder)(prompt).logits for folder in (saved, again))
        assert not torch.equal(before, model(prompt).logits)
    assert torch.equal(before, after)
    assert packed(again) == content


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    layers=st.dictionaries(
        st.from_regex(r"[a-z_]{1,5}(\.[0-9a-z_]{1,4}){0,2}\.q_proj", fullmatch=True),
        st.tuples(st.integers(1, 5), st.sampled_from(["F32", "F16", "BF16"])),
        min_size=1,
        max_size=4,
    ),
    dropout=st.floats(0, 1),
    provenance=st.dictionaries(TEXT, JSON, max_size=3),
    labels=st.lists(TEXT, max_size=3),
)
def test_any_package_comes_back(
    layers: dict[str, tuple[int, str]], dropout: float, provenance: Any, labels: list[str]
) -> None:
    tensors: dict[str, Any] = {}
    for name, (rank, dtype) in layers.items():
        tensors |= pair(name, rank, dtype=dtype)
    # A longer name first: a shorter one may be its end.
    names = sorted(layers, key=len, reverse=True)
    config = CONFIG | {
        "target_modules": names,
        "rank_pattern": {name: layers[name][0] for name in names},
        "lora_dropout": dropout,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = write_folder(Path(place) / "folder", tensors, config)
        notes = {"labels": labels, "provenance": provenance}
        (folder / "loramux.json").write_text(json.dumps(notes))
        content = packed(folder)
        assert packed(unpacked(content, Path(place) / "again")) == content


NOTES = {
    "licence": "Apache-2.0",
    "labels": ["good", "bad"],
    "provenance": {"made_by": "hand", "steps": [{"rank": 3}]},
    "chat_template": "{{ messages }}",
}


def test_notes_travel_both_ways(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "noted")
    (folder / "loramux.json").write_text(json.dumps(NOTES))
    content = packed(folder)
    again = unpacked(content, tmp_path / "again")
    assert json.loads((again / "loramux.json").read_text()) == NOTES
    assert packed(again) == content
    file = io.BytesIO(content)
    notes = dict(read_package(file, len(content)).notes)
    assert cast(dict[str, str], notes.pop("tensors")).keys() == TENSORS.keys()
    assert notes == NOTES


def test_digests_alone_travel_as_well(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "noted")
    (folder / "loramux.json").write_text(json.dumps({"labels": []}))
    file = io.BytesIO(packed(folder))
    notes = read_package(file, len(file.getvalue())).notes
    (folder / "loramux.json").write_text(json.dumps({"tensors": notes["tensors"]}))
    content = packed(folder)
    assert packed(unpacked(content, tmp_path / "again")) == content


def test_an_adapter_may_be_trained_on_where_it_was_unpacked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "noted")
    (folder / "loramux.json").write_text(json.dumps(NOTES))
    again = unpacked(packed(folder), tmp_path / "again")
    other = write_folder(tmp_path / "other", {**TENSORS, B: ("F32", [3, 2], bytes(24))})
    (other / "adapter_model.safetensors").replace(again / "adapter_model.safetensors")
    assert packed(again) != packed(folder)


def test_the_order_of_notes_is_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "noted")
    contents = set()
    for names in (list(NOTES), list(reversed(NOTES))):
        (folder / "loramux.json").write_text(json.dumps({name: NOTES[name] for name in names}))
        contents.add(packed(folder))
    assert len(contents) == 1


def test_a_package_without_notes_leaves_no_file_of_notes(tmp_path: Path) -> None:
    folder = unpacked(package(), tmp_path / "folder")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"license": "MIT"}, "loramux.json: 'license' is not a known key; expected one of"),
        ({"licence": 3}, "loramux.json: licence is 3; expected a string"),
        ({"provenance": []}, "loramux.json: provenance is []; expected an object"),
        ({"tensors": {}}, "lora_A.weight' has no digest in the manifest"),
        ({"tensors": dict.fromkeys([*TENSORS, "other"], "sha256:0")}, "'other' is missing"),
        ({"tensors": dict.fromkeys(TENSORS, "sha256:0")}, "the tensor was changed after packing"),
    ],
)
def test_wrong_notes_are_refused(notes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "noted")
    (folder / "loramux.json").write_text(json.dumps(notes))
    with pytest.raises(PackageError) as caught:
        packed(folder)
    assert message in str(caught.value)


def test_unpack_from_the_command_line(loramux: Loramux, poet: Path, tmp_path: Path) -> None:
    done = loramux("pack", "poet", "-o", "poem.safetensors")
    digest = done.output.split()[1]
    assert loramux("unpack", "poem.safetensors") == Result(0, f"poem {digest}\n", "")
    assert loramux("pack", "poem", "-o", "again").output == f"again {digest}\n"
    done = loramux("unpack", "again", "-o", "third", "--json")
    assert json.loads(done.output) == {
        "path": "third",
        "digest": digest,
        "files": ["adapter_config.json", "adapter_model.safetensors"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("unpack absent", "No such file or directory"),
        ("unpack poem.safetensors -o poet", "poet already exists; choose a new folder"),
        ("unpack poem.safetensors -o absent/there", "No such file or directory"),
        ("unpack cut", "the tensors need"),
    ],
)
def test_a_mistake_writes_no_folder(
    arguments: str, message: str, loramux: Loramux, poet: Path, tmp_path: Path
) -> None:
    loramux("pack", "poet", "-o", "poem.safetensors")
    Path("cut").write_bytes(Path("poem.safetensors").read_bytes()[:-1])
    before = sorted(tmp_path.rglob("*"))
    done = loramux(*arguments.split())
    assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
    assert message in done.errors
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_opens_as_its_package(tmp_path: Path) -> None:
    tensors = {**TENSORS, **pair("model.layers.1.self_attn.q_proj", 2)}
    folder = write_folder(tmp_path / "poet", tensors, CONFIG)
    (tmp_path / "poet.safetensors").write_bytes(packed(folder))
    with open_package(folder) as one, open_package(tmp_path / "poet.safetensors") as other:
        assert one[1] == other[1]
        assert digest_of(one[0]) == digest_of(other[0])
