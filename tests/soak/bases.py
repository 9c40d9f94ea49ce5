"""Servers to use for long, each with a base and adapters of its own."""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peft import LoraConfig, PrefixTuningConfig
from transformers import AutoModelForCausalLM, PreTrainedModel

from loramux import Image
from loramux_adapters import pack
from loramux_adapters.head import Task
from loramux_server.wire.model_kind import ModelKind
from tests.soak.campaign import Outcome, campaign
from tests.soak.worker import Setting
from tests.support.adapters import save_adapter, save_tuned
from tests.support.classifiers import classifier
from tests.support.demo import DEMO
from tests.support.encoder_heads import save_headed
from tests.support.encoder_models import own_model
from tests.support.labelled import save_reader
from tests.support.models import save_model, tiny_model
from tests.support.pictures import picture, saved
from tests.support.server import RunningServer
from tests.support.tool_templates import TAGS
from tests.support.vision import save_vision_base
from tests.support.writers import ending_tokenizer, save_writer

ADAPTERS = ("reverse", "upper", "sort", "title", "double")
CHATS = "title"
LABELS, SPANS = "mood", "finder"
NUM_PACKAGES = 12
HYBRID = "qwen3-next"
"""A base with recurrent layers and experts."""
RECURRENT: list[str] = ["in_proj_qkvz", "in_proj_ba", "out_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
HYBRID_ADAPTERS: dict[str, dict[str, Any]] = {
    "recurrent": {"target_modules": RECURRENT},
    "attention": {"target_modules": ["q_proj", "o_proj"]},
    "all": {"target_modules": [*RECURRENT, "q_proj", "v_proj"]},
}
"""Those that can be mixed -> what they change."""
HYBRID_CHATS = "experts"
HYBRID_PACKAGES = ("recurrent", "all", HYBRID_CHATS)
VISION = "qwen2.5-vl"
"""A base that sees images."""
VISION_ADAPTERS = {
    "text": [f"language_model.layers.{layer}.self_attn.q_proj" for layer in range(2)],
    "vision": "all-linear",
}
"""Those of it -> what they change."""
READERS: dict[str, dict[str, Any]] = {
    "vectors": {"target_modules": "all-linear"},
    "weighted": {"target_modules": ["query", "intermediate.dense"], "use_dora": True},
    "biased": {"target_modules": ["value"], "bias": "lora_only"},
}
"""Adapters of an encoder that make vectors -> what they change."""
TAGS_OF_TOKENS = "tags"
WRITERS = {"plain": ["q", "v"], "wide": ["q", "k", "v", "o", "wi", "wo"], "single": ["wo"]}
"""Adapters of a base that writes what it does not read -> what they change."""
WRITER_MEMORY = 250_000
"""Bytes for KV blocks of such a base, in which not all requests have room."""
NUM_SOURCES = 4500
"""Of 16 KB each with what holds them, as those at work are; 64 MiB are kept."""
NUM_CLIENTS = 8
NUM_IMAGES = 600
"""Of 300 KB each, as the model takes them; 64 MiB are kept."""
KV_MEMORY = 300_000
"""Bytes; half of it is for what recurrent layers know of requests, of which fewer run than 16."""


def variants(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Write packages that differ in a note alone, and so in their digests."""
    packages = []
    for number in range(NUM_PACKAGES):
        copy = folder / f"variant-{number}"
        shutil.copytree(sources[number % len(sources)], copy)
        (copy / "loramux.json").write_text(json.dumps({"licence": f"variant {number}"}))
        packages.append(folder / f"{number}.safetensors")
        with packages[-1].open("wb") as file:
            pack(copy, file)
    return packages


def demo_campaign(seconds: float, folder: Path) -> Outcome:
    """Use a server of the embedded model and its adapters for so long."""
    adapters = folder / "adapters"
    shutil.copytree(DEMO / "adapters", adapters)
    base = AutoModelForCausalLM.from_pretrained(DEMO / "base")
    _save_readers(base, ["q_proj", "down_proj"], adapters)
    setting = _setting(ADAPTERS, ADAPTERS, adapters, folder, chats=CHATS)
    return _campaign(DEMO / "base", adapters, setting, seconds, folder)


def hybrid_campaign(seconds: float, folder: Path) -> Outcome:
    """Use a server of a tiny base with recurrent layers and experts for so long."""
    adapters = folder / "adapters"
    place = save_model(folder / "base", HYBRID, max_position_embeddings=4096)
    base = tiny_model(HYBRID, vocab_size=259)
    kinds = HYBRID_ADAPTERS | {HYBRID_CHATS: {"target_parameters": EXPERTS, "target_modules": []}}
    for seed, (name, kind) in enumerate(kinds.items()):
        save_adapter(base, adapters / name, seed=seed, r=4, **kind)
    _save_readers(base, RECURRENT, adapters)
    names = tuple(HYBRID_ADAPTERS)
    setting = _setting(names, HYBRID_PACKAGES, adapters, folder, chats=HYBRID_CHATS)
    arguments = ["--kv-memory", str(KV_MEMORY)]
    return _campaign(place, adapters, setting, seconds, folder, *arguments)


def vision_campaign(seconds: float, folder: Path) -> Outcome:
    """Use a server of a tiny base that sees images for so long."""
    adapters = folder / "adapters"
    base = save_vision_base(VISION, folder / "base")
    for seed, (name, targets) in enumerate(VISION_ADAPTERS.items()):
        save_adapter(base, adapters / name, seed=seed, r=4, target_modules=targets)
    names = tuple(VISION_ADAPTERS)
    (folder / "packages").mkdir()
    packages = variants([adapters / name for name in names], folder / "packages")
    setting = Setting(names, packages, shows=True)
    return _campaign(folder / "base", adapters, setting, seconds, folder, prepare=_show_many)


def encoder_campaign(seconds: float, folder: Path) -> Outcome:
    """Use a server of a tiny base that reads texts and continues none for so long."""
    adapters = folder / "adapters"
    base = save_reader(folder / "base")
    for seed, (name, kind) in enumerate(READERS.items()):
        save_tuned(
            base, LoraConfig(task_type="FEATURE_EXTRACTION", r=4, **kind), adapters / name,
            seed=seed,
        )  # fmt: skip
    heads = {LABELS: Task.SEQUENCE, SPANS: Task.SPANS, TAGS_OF_TOKENS: Task.TOKENS}
    for name, task in heads.items():
        config_of_head = LoraConfig(task_type=str(task), r=4, target_modules=["query", "key"])
        save_headed(folder / "base", task, config_of_head, adapters / name)
    (folder / "packages").mkdir()
    packages = variants([adapters / name for name in READERS], folder / "packages")
    setting = Setting(
        tuple(READERS), packages, labels=LABELS, spans=SPANS, tags=TAGS_OF_TOKENS,
        kind=ModelKind.ENCODER,
    )  # fmt: skip
    return _campaign(folder / "base", adapters, setting, seconds, folder)


def seq2seq_campaign(seconds: float, folder: Path) -> Outcome:
    """Use a server of a tiny base that reads one text and writes another for so long."""
    adapters = folder / "adapters"
    place = save_writer("t5", folder / "base", ending_tokenizer())
    base = own_model(place)
    lora: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM", "r": 4}
    for seed, (name, targets) in enumerate(WRITERS.items()):
        save_tuned(base, LoraConfig(target_modules=targets, **lora), adapters / name, seed=seed)
    prefix = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    save_tuned(base, prefix, folder / "prefix", seed=0)
    (folder / "packages").mkdir()
    sources = [*(adapters / name for name in WRITERS), folder / "prefix"]
    packages = variants(sources, folder / "packages")
    setting = Setting(tuple(WRITERS), packages, kind=ModelKind.SEQ2SEQ)
    arguments = ["--kv-memory", str(WRITER_MEMORY)]
    return _campaign(place, adapters, setting, seconds, folder, *arguments, prepare=_write_many)


def _write_many(server: RunningServer) -> None:
    """Write to so many texts that no more are kept, before anything is measured."""

    def write(share: int) -> None:
        with server.client() as client:
            for number in range(share, NUM_SOURCES, NUM_CLIENTS):
                first = [3 + digit for digit in divmod(number, 250)]
                client.generate([*first, *range(3, 17)], max_tokens=1)

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(write, range(NUM_CLIENTS)))


def _show_many(server: RunningServer) -> None:
    """Show so many images that no more are kept, before anything is measured."""

    def show(seed: int) -> None:
        image = Image(saved(picture(size=(112, 112), seed=seed)))
        with server.client() as client:
            client.chat([{"role": "user", "content": [image]}], max_tokens=1)

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(show, range(NUM_IMAGES)))


def _save_readers(base: PreTrainedModel, targets: list[str], adapters: Path) -> None:
    """Save an adapter that classifies texts, and one that finds answers in them."""
    for name, (task, num_outputs) in {
        LABELS: (Task.SEQUENCE, 3), SPANS: (Task.SPANS, 2),
    }.items():  # fmt: skip
        config = LoraConfig(task_type=str(task), r=4, target_modules=targets)
        save_tuned(classifier(base, task, num_outputs), config, adapters / name, seed=0)


def _setting(
    names: Sequence[str], packed: Sequence[str], adapters: Path, folder: Path, *, chats: str
) -> Setting:
    (adapters / chats / "chat_template.jinja").write_text(TAGS)
    (folder / "packages").mkdir()
    packages = variants([adapters / name for name in packed], folder / "packages")
    return Setting(names, packages, chats=chats, labels=LABELS, spans=SPANS)


def _campaign(
    base: Path, adapters: Path, setting: Setting, seconds: float, folder: Path, *more: str,
    prepare: Callable[[RunningServer], None] = lambda _: None,
) -> Outcome:  # fmt: skip
    arguments = ["--adapters", str(adapters), "--max-running", "16", "--max-waiting", "256", *more]
    with RunningServer(folder / "server", base, *arguments) as server:
        prepare(server)
        return campaign(server, setting, seconds=seconds)
