"""adapter_config.json: what is refused, and that nothing in it is followed.

The ids are those of the corpus of bad inputs: B01 to B14.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from loramux_adapters import PackageError
from loramux_adapters.kinds import AdapterConfig, kind_of
from loramux_adapters.lora_config import LoraConfig
from loramux_adapters.peft_folder import MAX_CONFIG_BYTES
from tests.adapters.files import CONFIG

INVALID = "INVALID_ADAPTER_CONFIG"
UNSUPPORTED = "UNSUPPORTED_ADAPTER_FEATURE"


def case(id: str, reason: str, *message: str, **changes: Any) -> Any:
    """Return a case: what the error says about a good config with `changes`."""
    return pytest.param(CONFIG | changes, reason, message, id=id)


def check_config(config: dict[str, Any]) -> AdapterConfig:
    return kind_of(config).check(config)  # type: ignore[no-any-return]


def nested(levels: int) -> list[Any]:
    """Return lists in each other, `levels` of them."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


CORPUS = [
    case("B03-nested-9-deep", INVALID, "nested more than 8", loftq_config=nested(8)),
    case("B03-nested-5000-deep", INVALID, "nested more than 8", loftq_config=nested(5000)),
    *(
        case(f"B04-{kind}", UNSUPPORTED, "peft_type", repr(kind), peft_type=kind)
        for kind in ("LOHA", "ADALORA", "lora", "", None, 7, ["LORA"])
    ),
    *(
        case(f"B05-{field}", UNSUPPORTED, f"'{field}'", **{field: value})
        for field, value in {
            "layer_replication": [[0, 4], [2, 5]], "target_parameters": ["experts.w1"],
            "use_qalora": True, "megatron_config": {"a": 1}, "use_bdlora": {"nblocks": 2},
            "arrow_config": {"top_k": 1}, "kasa_config": {"beta": 1}, "velora_config": {"scale": 1},
            "monteclora_config": {"n": 1}, "init_lora_weights": "pissa",
        }.items()
    ),
    *(
        case(f"B05-alora-{number}", INVALID, "alora_invocation_tokens", alora_invocation_tokens=v)
        for number, v in enumerate(("ab", 7, {"a": 1}, [True], [-1], ["a"], [1 << 31], [1] * 1025))
    ),
    case(
        "B05-alora-dora", UNSUPPORTED, "'use_dora'", "alora_invocation_tokens",
        alora_invocation_tokens=[1, 2], use_dora=True,
    ),
    case(
        "B05-alora-classifies", UNSUPPORTED, "'task_type'", "CAUSAL_LM",
        alora_invocation_tokens=[1, 2], task_type="SEQ_CLS",
    ),
    *(
        # PEFT makes a config of defaults of an empty object: the feature is on.
        case(f"B05-{field}-with-its-defaults", UNSUPPORTED, f"'{field}'", **{field: {}})
        for field in (
            "velora_config", "kasa_config", "arrow_config", "use_bdlora", "monteclora_config",
        )
    ),
    *(
        case(f"B06-{pattern}", UNSUPPORTED, "target_modules", repr(pattern), target_modules=pattern)
        for pattern in ("(a+)+{9999}$", "(a)\\1", "(?>a)", "a{1,100000}", "q_proj(")
    ),
    case("B06-in-a-list", UNSUPPORTED, "target_modules", "'.*'", target_modules=["q_proj", ".*"]),
    case("B06-to-exclude", UNSUPPORTED, "exclude_modules", "'.*+'", exclude_modules=".*+"),
    case("B06-layers", UNSUPPORTED, "layers_pattern", "'h|l'", layers_pattern="h|l"),
    *(
        case(f"B07-{field}-{key}", UNSUPPORTED, field, repr(key), **{field: {key: 4}})
        for field in ("rank_pattern", "alpha_pattern")
        for key in ("(a", "(?i)a", "(a)\\2", "a{20000}", "a++", "(?<=a*)b")
    ),
    *(
        case(f"B08-r-{value!r}", INVALID, "r is", repr(value), r=value)
        for value in (-1, 0, 2.5, "8", True, None, 10**9, 513, [8])
    ),
    *(
        case(f"B08-rank-pattern-{value!r}", INVALID, "rank_pattern['q_proj']", repr(value),
             rank_pattern={"q_proj": value})
        for value in (-1, 0, 2.5, "8", True, None, 513)
    ),
    *(
        case(f"B09-{value!r}", INVALID, "lora_alpha is", repr(value), lora_alpha=value)
        for value in (float("nan"), float("inf"), -1, 0, 1e308, 4097, "16", True, None, [16])
    ),
    *(
        case(f"B09-alpha-pattern-{value!r}", INVALID, "alpha_pattern['q_proj']", repr(value),
             alpha_pattern={"q_proj": value})
        for value in (float("nan"), float("inf"), -1, 0, 1e308, "16", True, None)
    ),
    *(
        case(f"B11-{field}", UNSUPPORTED, f"'{field}'", repr(value), **{field: value})
        for field, value in {
            "auto_map": {"AutoModel": "modeling.Model"}, "trust_remote_code": True,
            "_attn_implementation_internal": "flash",
        }.items()
    ),
    case("B14-unknown-field", UNSUPPORTED, "'use_everything'", "1", use_everything=1),
    case("B14-unknown-field-of-odd-text", UNSUPPORTED, r"'\x1b[31m'", **{"\x1b[31m": 1}),
    case("rank-pattern-a-list", INVALID, "rank_pattern", "[1]", rank_pattern=[1]),
    case("bias-unknown", INVALID, "bias", "'some'", "'lora_only'", bias="some"),
    case("bias-a-list", INVALID, "bias", "[1]", bias=[1]),
    case("use-dora-text", INVALID, "use_dora", "'yes'", use_dora="yes"),
    case("use-rslora-text", INVALID, "use_rslora", "'false'", use_rslora="false"),
    case("targets-none", INVALID, "target_modules is empty", target_modules=None),
    case("targets-empty", INVALID, "target_modules is empty", target_modules=[]),
    case("targets-a-number", INVALID, "target_modules", "[1]", target_modules=[1]),
    case("targets-an-empty-name", INVALID, "target_modules", "['']", target_modules=[""]),
    case("targets-an-object", INVALID, "target_modules", target_modules={"q_proj": 1}),
    *(
        case(f"layers-{value!r}", INVALID, "layers_to_transform", repr(value),
             layers_to_transform=value)
        for value in (-1, [-1], [0.0], "0", True, ["0"], {"0": 1})
    ),
    *(
        case(f"task-type-{value!r}", INVALID, "task_type is", repr(value), task_type=value)
        for value in (["SEQ_CLS"], {"SEQ_CLS": 1}, 7, True)
    ),
    case("base-model-a-number", INVALID, "base_model_name_or_path", base_model_name_or_path=7),
    case("base-model-too-long", INVALID, "4096", base_model_name_or_path="x" * 4097),
    case("long-value", INVALID, "characters", r="8" * 5000),
    case("long-key", INVALID, "characters", rank_pattern={"q" * 5000: 0}),
    case("long-alpha-key", INVALID, "characters", alpha_pattern={"q" * 5000: 0}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "reason", "message"), CORPUS)
def test_a_bad_config_is_refused_by_the_name_of_its_field(
    config: dict[str, Any], reason: str, message: tuple[str, ...]
) -> None:
    with pytest.raises(PackageError) as caught:
        check_config(config)
    text = str(caught.value)
    assert caught.value.reason == reason, text
    assert all(part in text for part in message), text
    assert text.isprintable() and len(text) < 1000


GOOD: dict[str, list[Any]] = {
    "r": [1, 512],
    "lora_alpha": [0.5, 16, 4096],
    "rank_pattern": [None, {}, {"q_proj": 512, "model.layers.0.mlp.up-proj": 1}],
    "alpha_pattern": [
        None, {}, {"q_proj": 0.5}, {"^model.layers.0": 1, "q_proj$": 2, "(a+)+": 3, "a|b": 4},
    ],
    "use_rslora": [None, True],
    "target_modules": ["all-linear", ["a.b-c_d.0"], ".*", "(a+)+$", "q_proj"],
    "exclude_modules": [None, [], "", ["lm_head"], ".*(?:visual|head).*"],
    "layers_to_transform": [None, [], 0, [0, 1]],
    "layers_pattern": [None, [], "", "layers", ["layers", "h"], "(h|layers)"],
    "bias": ["none", None, "all", "lora_only"],
    "lora_bias": [False, None, True],
    "init_lora_weights": [True, False, "gaussian", "eva", "orthogonal", "mica"],
    "use_dora": [False, None, True],
    "modules_to_save": [None, [], ["lm_head", "model.norm"]],
    "trainable_token_indices": [None, [], [7], {"embed_tokens": [7, 0]}],
    "ensure_weight_tying": [None, True],
    "task_type": [None, "", [], {}, "CAUSAL_LM", "FEATURE_EXTRACTION"],
    "of_a_later_peft": [None, False, 0, "", [], {}],
    "loftq_config": [{"loftq_bits": 4}],
    "merge_weights": [False, True],
    # B12 and B13: recorded, whatever they name.
    "base_model_name_or_path": [
        None, "", "https://example.com/x", "/etc/passwd", "../../x", "someone/else",
    ],
    "revision": ["refs/pr/1"],
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({field: value}, id=f"{field}-{value!r}")
        for field, values in GOOD.items()
        for value in values
    ],
)
def test_a_good_value_is_accepted(changes: dict[str, Any]) -> None:
    checked = check_config(CONFIG | changes)
    base_model = changes.get("base_model_name_or_path") or ""
    assert checked.base_model == base_model


def test_names_of_modules_and_places_are_never_followed() -> None:
    config = CONFIG | {
        "auto_mapping": {"base_model_class": "Model", "parent_library": "wave"},
        "megatron_core": "wave",
        "base_model_name_or_path": "/etc/passwd",
        "revision": "https://example.com/",
        "peft_version": "wave",
    }
    program = f"""
import sys, json
from loramux_adapters.kinds import kind_of
from loramux_adapters.strict_json import parse_object

raw = {json.dumps(config).encode()!r}
before = set(sys.modules)
events = []
sys.addaudithook(lambda name, _: events.append(name))
config = parse_object(raw, "the config")
kind_of(config).check(config)
print(json.dumps([events, sorted(set(sys.modules) - before)]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(done.stdout) == [[], []]


def test_each_pattern_is_not_tried_on_each_layer() -> None:
    keys = [f"a{number:x}" for number in range(MAX_CONFIG_BYTES // 9)]
    config = check_config(CONFIG | {"rank_pattern": dict.fromkeys(keys, 1)})
    assert isinstance(config, LoraConfig)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        for number in range(100):
            config.scale_of(f"model.layers.{number}.mlp.q_proj")
    finally:
        sys.setprofile(None)
    assert calls < 100 * 100
