"""What comes of texts that are read as wholes, beside others and after them."""

from pathlib import Path
from typing import Any

import pytest

from loramux_server.models.encoders.prefix_cache import Seq2SeqPrefixCache
from tests.support.encoder_batches import EncoderBatches


def test_answers_depend_on_nobody_else_and_others_adapters_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subject = EncoderBatches("t5", tmp_path)
    assert list(subject.differences(6)) == []
    assert subject.num_preemptions > 0
    assert subject.most_adapters > 2
    find, put = Seq2SeqPrefixCache.find, Seq2SeqPrefixCache.put
    nobody = ("", None)

    def find_any(self: Seq2SeqPrefixCache, _: Any, *texts: Any) -> Any:
        return find(self, nobody, *texts)

    def put_for_all(self: Seq2SeqPrefixCache, _: Any, *texts: Any, **known: Any) -> None:
        put(self, nobody, *texts, **known)

    monkeypatch.setattr(Seq2SeqPrefixCache, "find", find_any)
    monkeypatch.setattr(Seq2SeqPrefixCache, "put", put_for_all)
    assert list(subject.differences(4)) != []
