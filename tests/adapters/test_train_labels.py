"""`loramux train` for several labels of a text, and for numbers."""

from pathlib import Path
from typing import Any

import pytest

from loramux_adapters import PackageError, open_package
from loramux_adapters.labels import ProblemType
from loramux_adapters.train.examples import read_examples
from tests.adapters.test_train import write
from tests.adapters.test_train_tasks import train
from tests.support.command_line import Loramux
from tests.support.encoder_models import save_encoder_base
from tests.support.encoder_tokenizers import wordpiece
from tests.support.trained import SCORED, SEVERAL


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = save_encoder_base("bert", tmp_path_factory.mktemp("bert"))
    wordpiece().save_pretrained(str(base))
    return base


@pytest.mark.parametrize("method", ["lora", "prefix"])
@pytest.mark.parametrize(
    ("lines", "problem", "names"),
    [
        (SEVERAL, ProblemType.MULTI_LABEL, ("cold", "day", "warm")),
        (SCORED, ProblemType.REGRESSION, ("score",)),
    ],
)
def test_several_labels_and_numbers_are_learned(
    loramux: Loramux, bert: Path, lines: list[dict[str, Any]], problem: ProblemType,
    names: tuple[str, ...], method: str,
) -> None:  # fmt: skip
    done = train(loramux, bert, lines, "--method", method, "--epochs", "8")
    losses = [point["loss"] for point in done["training"]]
    assert sum(losses[-12:]) < sum(losses[:12]) * 0.95
    assert len(done["accuracy"]) == (0 if problem is ProblemType.REGRESSION else 9)
    with open_package(Path(done["path"])) as (_, package):
        assert package.head is not None
        assert package.labels is not None
        assert (package.labels.names, package.labels.problem) == (names, problem)
        assert package.head.num_labels == len(names)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "a", "score": "3"}, "score is '3'; expected a number"),
        ({"text": "a", "score": True}, "score is True; expected a number"),
        ({"text": "a", "labels": ["x", "x"]}, "labels is ['x', 'x'], which has a duplicate"),
        ({"text": "a", "labels": "x"}, "labels is 'x'; a line is"),
    ],
)
def test_a_line_of_several_labels_or_a_number_is_checked(
    tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    with pytest.raises(PackageError) as caught:
        read_examples(write(tmp_path / "data", [line]))
    assert f"data, line 1: {message}" in str(caught.value)
