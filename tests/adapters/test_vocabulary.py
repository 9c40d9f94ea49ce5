"""An adapter's own vocabulary: how many tokens there are with it, and what is refused."""

from typing import Any

import pytest

from loramux_adapters import PackageError, check_fit
from loramux_adapters.kinds import read_contents
from loramux_adapters.vocabulary import BaseVocabulary
from tests.adapters.files import CONFIG, MODULE
from tests.adapters.test_contents import LORA, infos
from tests.adapters.test_saved import EMBED, HEAD, P

BOTH = CONFIG | {"modules_to_save": ["embed_tokens", "lm_head"]}
WEIGHT = f"{EMBED}.weight"
ROWS = ".token_adapter.trainable_tokens_delta"
UNTIED = BaseVocabulary("model.embed_tokens", "lm_head", 9, 9)
TIED = BaseVocabulary("model.embed_tokens", "lm_head", 9, 9, is_tied=True)


def tokens(*added: int) -> dict[str, Any]:
    return CONFIG | {"trainable_token_indices": list(added)}


@pytest.mark.parametrize(
    ("base", "config", "shapes", "size"),
    [
        (UNTIED, CONFIG, {}, 0),
        (UNTIED, BOTH, {WEIGHT: [9, 4], HEAD: [9, 4]}, 0),
        (UNTIED, BOTH, {WEIGHT: [11, 4], HEAD: [11, 4]}, 11),
        (UNTIED, BOTH, {WEIGHT: [8, 4], HEAD: [8, 4]}, 8),
        (TIED, CONFIG, {f"{EMBED}.base_layer.weight": [11, 4]}, 11),
        (TIED, tokens(10, 9, 2), {f"{EMBED}{ROWS}": [3, 4]}, 11),
        (UNTIED, tokens(2), {f"{EMBED}{ROWS}": [1, 4]}, 0),
        (UNTIED, tokens(9), {f"{EMBED}{ROWS}": [1, 4], f"{P}lm_head{ROWS}": [1, 4]}, 10),
        # Rows are those of the resized weight.
        (TIED, tokens(10), {f"{EMBED}{ROWS}": [1, 4], f"{EMBED}.base_layer.weight": [11, 4]}, 11),
    ],
)
def test_the_rows_say_how_many_tokens_there_are(
    base: BaseVocabulary, config: dict[str, Any], shapes: dict[str, list[int]], size: int
) -> None:
    _, contents = read_contents(config, infos(LORA | shapes))
    assert base.size_for(contents) == size
    layers = {MODULE: (4, 3), "model.embed_tokens": (9, 4), "lm_head": (4, 9)}
    parameters = {"model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}
    check_fit(contents, *base.resized(contents, layers, parameters))


@pytest.mark.parametrize(
    ("base", "config", "shapes", "message"),
    [
        (
            UNTIED,
            BOTH,
            {WEIGHT: [11, 4]},
            "11 tokens in module model.embed_tokens and 9 in lm_head",
        ),
        (TIED, BOTH, {WEIGHT: [11, 4]}, "with a resized vocabulary save both of them"),
        (UNTIED, tokens(9), {f"{EMBED}{ROWS}": [1, 4]}, "10 tokens in module model.embed_tokens"),
        (TIED, tokens(10), {f"{EMBED}{ROWS}": [1, 4]}, "a row for token 10 and none for 9"),
    ],
)
def test_a_vocabulary_that_is_there_in_part_is_refused(
    base: BaseVocabulary, config: dict[str, Any], shapes: dict[str, list[int]], message: str
) -> None:
    _, contents = read_contents(config, infos(LORA | shapes))
    with pytest.raises(PackageError) as caught:
        base.size_for(contents)
    assert message in str(caught.value)
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
