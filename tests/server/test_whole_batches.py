"""What comes of texts that are read as wholes, beside others and after them."""

from pathlib import Path
from typing import Any

import pytest

from loramux_server.models.encoders.kept_texts import KeptTexts
from tests.support.whole_batches import WholeBatches


def test_answers_depend_on_nobody_else_and_others_adapters_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subject = WholeBatches("t5", tmp_path)
    assert list(subject.differences(6)) == []
    assert subject.num_preemptions > 0
    assert subject.most_adapters > 2
    find, keep = KeptTexts.find, KeptTexts.keep
    nobody = ("", None)

    def find_any(self: KeptTexts, _: Any, *texts: Any) -> Any:
        return find(self, nobody, *texts)

    def keep_for_all(self: KeptTexts, _: Any, *texts: Any, **known: Any) -> None:
        keep(self, nobody, *texts, **known)

    monkeypatch.setattr(KeptTexts, "find", find_any)
    monkeypatch.setattr(KeptTexts, "keep", keep_for_all)
    assert list(subject.differences(4)) != []
