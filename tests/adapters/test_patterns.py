"""Regular expressions for names of modules: they mean what Python means, in bounded time."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from peft import IA3Config as Ia3PeftConfig
from peft import LoraConfig as PeftLoraConfig
from peft import TrainableTokensConfig, get_peft_model
from peft.tuners.ia3 import IA3Model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from loramux_adapters import PackageError
from loramux_adapters.ia3 import check_ia3
from loramux_adapters.kinds import kind_of
from loramux_adapters.pattern import Pattern
from loramux_adapters.pattern_code import MAX_LENGTH, MAX_STEPS, Steps
from loramux_adapters.peft_config import check_config
from tests.adapters.files import CONFIG
from tests.support.adapters import quiet_peft, save_adapter
from tests.support.command_line import Loramux
from tests.support.models import tiny_model

PARTS = r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
PROJECTIONS = r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
UNSLOTH = (
    rf"(?:.*?(?:language|text).*?{PARTS}.*?{PROJECTIONS}.*?)"
    rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.{PARTS}\.(?:{PROJECTIONS}))"
)
OF_TRAINERS = [
    UNSLOTH,
    r"^(language_model|model)(?!.*(lm_head|output|emb|router)).*",
    r"^(?!.*(?:visual|vision_tower)).*(?:q_proj|v_proj).*",
    r".*language_model.*\.(q|v)_proj$",
]
NAMES = [
    "lm_head", "model.embed_tokens", "model.layers.11.self_attn.q_proj",
    "model.layers.0.mlp.up_proj", "model.layers.0.mlp.router", "model.norm",
    "model.language_model.layers.3.self_attn.v_proj", "language_model.model.layers.3.mlp.gate",
    "model.visual.blocks.1.attn.qkv", "model.visual.blocks.1.mlp.up_proj", "visual.q_proj",
    "model.vision_tower.layers.1.self_attn.v_proj", "text.dense.k_proj.x", "model",
]  # fmt: skip

LETTERS = "ab._1"
ATOMS = st.sampled_from([
    "a", "b", "_", "1", r"\.", ".", r"\w", r"\d", r"\D", r"\W", r"\s", r"\S", "[ab]", "[^a]",
    "[^b.]", "[a-c_]", r"[\d.]", "ab", "aa",
])  # fmt: skip
PLACES = st.sampled_from(["^", "$", r"\b", r"\B", r"\A", r"\Z", ""])
COUNTS = st.sampled_from(
    ["*", "+", "?", "*?", "+?", "??", "{2}", "{0}", "{1,2}", "{2,}", "{0,2}?", "{,3}"]
)


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return expressions made of `inner` ones."""
    look = st.sampled_from(["?=", "?!", "?:", "", "?i:", "?-i:", "?s:"])
    return (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map("|".join)
        | st.tuples(look, inner).map(lambda pair: f"({pair[0]}{pair[1]})")
        | st.tuples(inner, COUNTS).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
        | ATOMS.map(lambda atom: f"(?<={atom})")
        | ATOMS.map(lambda atom: f"(?<!{atom})")
    )


EXPRESSIONS = st.recursive(
    st.tuples(ATOMS, COUNTS).map("".join) | ATOMS | PLACES, larger, max_leaves=10
)
STRINGS = st.text(alphabet=LETTERS + "A", min_size=1, max_size=8)


def pattern(text: str, **options: Any) -> Pattern:
    return Pattern.of("target_modules", text, Steps(), **options)


def taken(text: str, name: str) -> int:
    """Return the steps that it takes to try the expression on `name`."""
    steps = Steps()
    found = Pattern.of("target_modules", text, steps)
    before = steps.left
    found.fullmatch(name)
    return before - steps.left


@settings(max_examples=600)
@given(
    text=EXPRESSIONS,
    names=st.lists(STRINGS, min_size=3, max_size=6),
    flags=st.sampled_from(["", "(?i)"]),
)
def test_an_expression_matches_what_it_matches_in_python(
    text: str, names: list[str], flags: str
) -> None:
    text = flags + text
    found = pattern(text)
    for name in names:
        is_whole = re.fullmatch(text, name) is not None
        event(f"whole: {is_whole}")
        assert found.fullmatch(name) == is_whole, (text, name)
        assert (found.end(name) is not None) == (re.match(text, name) is not None), (text, name)


@settings(max_examples=400)
@given(text=EXPRESSIONS, name=st.text(alphabet=LETTERS, max_size=10))
def test_the_number_behind_an_expression_is_that_of_python(text: str, name: str) -> None:
    around = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
    try:
        found = pattern(text, inside=around, ending="idx")
    except PackageError as error:
        event(str(error).rpartition(":")[2])
        return
    match = re.match(around.replace("{}", text), name)
    event(f"matches: {match is not None}")
    assert found.end(name) == (match and match.end())


@pytest.mark.parametrize("text", OF_TRAINERS)
def test_what_trainers_write_means_what_it_means_to_peft(text: str) -> None:
    config = check_config({"peft_type": "LORA", "target_modules": text})
    theirs = PeftLoraConfig(target_modules=text)
    wanted = [bool(check_target_module_exists(theirs, name)) for name in NAMES]
    assert [config.targets(name) for name in NAMES] == wanted
    assert True in wanted
    assert False in wanted
    others = PeftLoraConfig(target_modules=["q_proj", "v_proj"], exclude_modules=text)
    config = check_config({
        "peft_type": "LORA", "target_modules": ["q_proj", "v_proj"], "exclude_modules": text,
    })  # fmt: skip
    wanted = [bool(check_target_module_exists(others, name)) for name in NAMES]
    assert [config.targets(name) for name in NAMES] == wanted


KEYS = [
    "q_proj", "^model.layers.0.mlp.up_proj", r"model\.layers\.11\.self_attn\.q_proj$", "mlp",
    r".*\.q_proj", "^q_proj", r"layers\.(0|3)\..*", r"(?!.*visual).*_proj", r"lay.*",
    "up_proj|norm", r"a)|(model.*", "lm_hea[d]",
]  # fmt: skip


@settings(max_examples=300)
@given(keys=st.permutations(KEYS), number=st.integers(1, 5), name=st.sampled_from(NAMES))
def test_the_first_key_that_peft_takes_counts(keys: list[str], number: int, name: str) -> None:
    values = {key: place for place, key in enumerate(keys[:number], 1)}
    config = check_config(CONFIG | {"r": 20, "rank_pattern": values, "alpha_pattern": values})
    key = get_pattern_key(list(values), name)
    event(f"found: {key in values}")
    assert config.rank_of(name) == values.get(key, 20)
    assert config.scale_of(name) == values.get(key, 4) / values.get(key, 20)


@pytest.mark.parametrize("behind", ["(?:h|layers)", "lay.*", "[a-z]+", ["blocks?", "layers"]])
@pytest.mark.parametrize("layers", [0, 1, [3, 11]])
def test_layers_may_stand_behind_expressions(behind: Any, layers: Any) -> None:
    fields = {
        "target_modules": ["q_proj", "v_proj", "up_proj"], "layers_to_transform": layers,
        "layers_pattern": behind,
    }  # fmt: skip
    config = check_config({"peft_type": "LORA", **fields})
    theirs = PeftLoraConfig(**fields)
    wanted = [bool(check_target_module_exists(theirs, name)) for name in NAMES]
    assert [config.targets(name) for name in NAMES] == wanted
    assert any(wanted)


def test_factors_of_ia3_may_be_of_inputs_by_an_expression() -> None:
    fields = {"target_modules": ".*", "feedforward_modules": r".*\.mlp\..*"}
    config, theirs = check_ia3({"peft_type": "IA3", **fields}), Ia3PeftConfig(**fields)
    for name in NAMES:
        assert config.targets(name)
        wanted = IA3Model._check_target_module_feedforward(theirs, name)
        assert config.is_feedforward(name) == wanted


@pytest.mark.parametrize("kind", ["LORA", "IA3", "LN_TUNING"])
def test_every_kind_takes_expressions(kind: str) -> None:
    config: Any = {
        "peft_type": kind, "target_modules": ".*norm", "exclude_modules": r".*layers\.1\..*",
    }  # fmt: skip
    checked = kind_of(config).check(config)
    names = ["model.norm", "layers.0.norm", "model.layers.1.norm", "layers.0.q"]
    assert [checked.targets(name) for name in names] == [True, True, False, False]


@pytest.mark.parametrize(("text", "code"), [(".*embed.*", 0), (".*lm_head", 1)])
def test_rows_of_tokens_are_of_embeddings_by_an_expression(
    text: str, code: int, loramux: Loramux, tmp_path: Path
) -> None:
    config = TrainableTokensConfig(token_indices=[1, 2], target_modules=".*embed.*")
    with quiet_peft():
        get_peft_model(tiny_model("llama"), config).save_pretrained(str(tmp_path / "rows"))
    path = tmp_path / "rows" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": text}))
    assert loramux("pack", "rows").code == code


@pytest.mark.parametrize(
    "text", ["(a+)+$", "(a|aa)+b", "(.*)*x", "((a*)*)*b", "(a|a?)+b", "(?:a?){60}a{60}",
             "(?=(a+)+b)a*", "(?!.*(?!.*(a+)+b))a*", ".*.*.*.*.*.*b", "(?:(?=.*a)a)*b"]
)  # fmt: skip
def test_steps_stay_below_the_bound(text: str) -> None:
    length = 200
    num_places, num_parts = length + 1, len(pattern(text)._program.code)
    for end in ("", "b", "!"):
        steps = taken(text, "a" * length + end)
        assert steps <= 2 * num_parts * num_places ** (2 if "(?=" in text or "(?!" in text else 1)
        assert steps < 400_000


REFUSED = {
    r"(a)\1": "a backreference",
    "(a)?(?(1)b|c)": "a conditional",
    "(?>a+)b": "(?>…) is not supported",
    "a++": "a++"[1:],
    "(?m:^a)": "only the flags (?i), (?s) and (?x)",
    "(?a:a)": "only the flags (?i), (?s) and (?x)",
    "(?i:é)": "only ASCII",
    "(": "not a regular expression",
    "a**": "not a regular expression",
    "(?<=a+)b": "a look-behind has variable width",
    "a{1,100000}": "more than 10000 parts",
    "((a{60}){60}){60}": "more than 10000 parts",
    "(?:(?:){9999}){9999}": "more than 10000 parts",
    "a{99999999999}": "not a regular expression",
    "(" * 60 + "a" + ")" * 60: "nested more than 50 levels",
    "(" * 2000 + "a" + ")" * 2000: "nested more than 50 levels",
    "a" * (MAX_LENGTH + 1): "4097 characters; the limit is 4096",
}


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=range(len(REFUSED)))
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_what_is_not_served_is_refused_with_the_reason(field: str, text: str, why: str) -> None:
    if field == "rank_pattern" and re.fullmatch("a+", text):
        return  # a name, whatever its length
    value = {text: 4} if field == "rank_pattern" else text
    with pytest.raises(PackageError) as caught:
        check_config(CONFIG | {field: value})
    message = str(caught.value)
    assert caught.value.reason == "UNSUPPORTED_ADAPTER_FEATURE"
    assert field in message
    assert why in message or (field == "rank_pattern" and "4096" in why)
    assert message.isprintable()
    assert len(message) < 500


def test_an_expression_cannot_take_more_steps_than_there_are() -> None:
    text = "(?:(?=.*b)|(?=.*c)|a)*" * 40 + "x"
    config = check_config(CONFIG | {"target_modules": text})
    names = ("a" * 200 + str(number) for number in range(2000))
    with pytest.raises(PackageError, match=f"takes more than {MAX_STEPS} steps") as caught:
        list(map(config.targets, names))
    assert "target_modules" in str(caught.value)


def test_the_expressions_of_a_config_share_its_steps() -> None:
    keys = {f"{number}[ -~]{{2000}}": 4 for number in range(100)}
    with pytest.raises(PackageError, match=f"takes more than {MAX_STEPS} steps"):
        check_config(CONFIG | {"rank_pattern": keys})


def test_names_of_a_large_adapter_take_a_part_of_the_steps() -> None:
    steps = Steps()
    found = Pattern.of("target_modules", UNSLOTH, steps)
    kinds = PROJECTIONS.removeprefix("(?:").removesuffix(")").split("|")
    names = [
        f"model.language_model.layers.{layer}.mlp.{kind}" for layer in range(286) for kind in kinds
    ]
    assert all(map(found.fullmatch, names))
    assert MAX_STEPS - steps.left < MAX_STEPS / 8


def test_layers_are_not_chosen_beside_an_expression() -> None:
    # PEFT does not make such a config.
    with pytest.raises(PackageError, match="layers_to_transform is 0; PEFT does not accept it"):
        check_config(CONFIG | {"target_modules": ".*", "layers_to_transform": 0})


@pytest.mark.parametrize(("text", "why"), [
    ("h|layers", "alternatives without parentheses"),
    ("(?:a|b*)*", "repeats a part that may be empty"),
    ("(?P<idx>a)", "not a regular expression"),
])  # fmt: skip
def test_what_hides_the_number_of_a_layer_is_refused(text: str, why: str) -> None:
    with pytest.raises(PackageError, match=re.escape(why)) as caught:
        check_config(CONFIG | {"layers_to_transform": 0, "layers_pattern": text})
    assert "layers_pattern" in str(caught.value)


def test_the_tools_take_them(loramux: Loramux, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        save_adapter(
            tiny_model("llama"), tmp_path / name, seed=seed, r=2, target_modules=UNSLOTH,
            exclude_modules=r".*layers\.0\.mlp\..*", rank_pattern={r"(q|k)_proj": 3},
        )  # fmt: skip
    assert loramux("pack", "one").code == 0
    assert (
        json.loads(loramux("inspect", "one", "--json").output)["peft_config"]["target_modules"]
        == UNSLOTH
    )
    assert loramux("lint", "one").code == 0
    assert loramux("convert", "one", "-o", "low", "--rank", "1").code == 0
    assert loramux("merge", "one", "two", "-o", "both").code == 0
    config = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    config["target_modules"] = f"(?:{UNSLOTH})"
    (tmp_path / "two" / "adapter_config.json").write_text(json.dumps(config))
    assert loramux("merge", "one", "two", "-o", "again").code == 0
    both, again = (
        json.loads(loramux("inspect", name, "--json").output) for name in ("both", "again")
    )
    assert both["targets"] == again["targets"]
    assert both["peft_config"]["target_modules"] == UNSLOTH
    assert len(again["peft_config"]["target_modules"]) == 11
