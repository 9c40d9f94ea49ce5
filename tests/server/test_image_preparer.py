"""The process that prepares images: bounded, without a way out, and asked once for each."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from huggingface_hub import constants

from loramux.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from loramux_server.images.messages import Setup
from loramux_server.images.preparer import Preparer
from loramux_server.images.processor import ImageProcessor
from tests.support.pictures import picture, saved
from tests.support.vision import save_vision_base

MAX_PIXELS = 40_000_000
TENANT = "acme"
FIELD = "messages[0].parts[1].image.data"
SIZE = 4 * 4 * 1176 * 4 + 3 * 8
"""Bytes of what becomes of a picture of 64 x 64 pixels."""


pytestmark = pytest.mark.asyncio(loop_scope="module")  # a process takes seconds to start


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "images.worker" in str(each.cmdline())]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    save_vision_base("qwen2.5-vl", folder)
    return str(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def preparer(base: str) -> AsyncIterator[Preparer]:
    preparer = Preparer(
        Setup(base, MAX_PIXELS, cpu_seconds=0.1), cache_bytes=2 * SIZE, answer_seconds=3
    )
    assert children() == []
    yield preparer
    await preparer.close()
    assert children() == []


async def test_a_process_gets_ready_though_nobody_waits_so_long(preparer: Preparer) -> None:
    given_up = asyncio.create_task(preparer.placeholder(TENANT))
    while not children():  # noqa: ASYNC110, of a process there is no event
        await asyncio.sleep(0.01)
    given_up.cancel()
    await asyncio.wait([given_up])
    (process,) = children()
    await preparer.placeholder(TENANT)
    assert children() == [process]


async def test_images_are_prepared_in_a_sandboxed_process(preparer: Preparer, base: str) -> None:
    here = ImageProcessor.load(base, MAX_PIXELS)
    assert await preparer.placeholder(TENANT) == here.placeholder
    (process,) = children()
    assert process.rlimit(psutil.RLIMIT_FSIZE)[1] == 0
    assert process.memory_info().vms < process.rlimit(psutil.RLIMIT_AS)[1] < 16 << 30
    modes = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"),
        "WEBP": ("RGB", "RGBA"), "GIF": ("L", "P"),
    }  # fmt: skip
    for data in [saved(picture(mode), kind) for kind in modes for mode in modes[kind]]:
        assert await preparer.prepare(data, FIELD, TENANT) == here.prepare(data)
    for data, message in (
        (b"%PDF", "the file begins with b'%PDF'"),
        (saved(picture())[:-99], "the PNG file cannot be decoded"),
        (saved(picture(size=(1, 999))), "1 x 999 pixels"),
    ):
        with pytest.raises(InvalidArgumentError, match=message) as caught:
            await preparer.prepare(data, FIELD, TENANT)
        assert str(caught.value).startswith(FIELD)
        assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", FIELD)
    assert children() == [process]


async def test_what_was_prepared_is_kept_for_the_next_turn(preparer: Preparer) -> None:
    one, two, three = (saved(picture(seed=seed)) for seed in range(3))
    first, same = await asyncio.gather(*(preparer.prepare(one, FIELD, TENANT) for _ in range(2)))
    assert first is same
    second = await preparer.prepare(two, FIELD, TENANT)
    assert await preparer.prepare(one, FIELD, TENANT) is first
    await preparer.prepare(three, FIELD, TENANT)
    assert await preparer.prepare(one, FIELD, TENANT) is first
    again = await preparer.prepare(two, FIELD, TENANT)
    assert again is not second and again == second


async def test_no_tenant_finds_what_another_has_had_prepared(preparer: Preparer) -> None:
    """How long it takes would tell who has seen an image."""
    image = saved(picture(seed=7))
    first = await preparer.prepare(image, FIELD, TENANT)
    other = await preparer.prepare(image, FIELD, "other")
    assert other == first and other is not first
    assert await preparer.prepare(image, FIELD, TENANT) is first


async def test_a_caller_that_gives_up_takes_no_answer_of_the_next(preparer: Preparer) -> None:
    await preparer.placeholder(TENANT)
    before = children()
    given_up = asyncio.create_task(preparer.prepare(saved(picture(seed=3)), FIELD, TENANT))
    await asyncio.sleep(0)
    given_up.cancel()
    other = await preparer.prepare(saved(picture(seed=4)), FIELD, TENANT)
    assert await preparer.prepare(saved(picture(seed=3)), FIELD, TENANT) != other
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert children() == before


async def test_an_image_that_takes_too_long_ends_alone(preparer: Preparer) -> None:
    huge = saved(picture("L", (1, 1)).resize((6000, 6000)))
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="exceeds the time limit of an image"):
            await preparer.prepare(huge, FIELD, TENANT)
        assert children() == []
    assert (await preparer.prepare(saved(picture()), FIELD, TENANT)).tokens


async def test_an_image_that_makes_a_forbidden_system_call_is_refused_from_then_on(
    preparer: Preparer,
) -> None:
    bad = saved(picture(seed=8))
    (process,) = children()
    process.suspend()
    preparing = asyncio.create_task(preparer.prepare(bad, FIELD, TENANT))
    await asyncio.sleep(0.05)
    process.send_signal(signal.SIGSYS)  # as the kernel does
    process.resume()
    for call in (preparing, preparer.prepare(bad, FIELD, TENANT)):
        with pytest.raises(InvalidArgumentError, match="makes a forbidden system call"):
            await call
    assert children() == []


async def test_a_process_that_hangs_is_not_the_images_fault(preparer: Preparer) -> None:
    await preparer.placeholder(TENANT)
    await preparer.prepare(saved(picture(seed=5)), FIELD, TENANT)
    (process,) = children()
    process.suspend()
    with pytest.raises(UnavailableError, match="was not prepared within 3 seconds") as caught:
        await preparer.prepare(saved(picture(seed=6)), FIELD, TENANT)
    assert caught.value.reason == "SERVER_BUSY"
    assert children() == []


async def test_a_base_without_a_processor_says_so_each_time(tmp_path: Path) -> None:
    save_vision_base("llava", tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / name).unlink()
    preparer = Preparer(Setup(str(tmp_path), MAX_PIXELS))
    for asked in (preparer.placeholder(TENANT), preparer.prepare(b"", FIELD, TENANT)):
        with pytest.raises(FailedPreconditionError, match="no image processor") as caught:
            await asked
        assert caught.value.reason == "IMAGES_NOT_SERVED"
        assert children() == []
    await preparer.close()


async def test_the_processor_of_a_hub_id_is_of_the_revision(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch main of this repository has no processor."""
    repository = tmp_path / "models--org--base"
    for revision, commit in (("v1", "a" * 40), ("main", "b" * 40)):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    shutil.copytree(base, repository / "snapshots" / ("a" * 40), dirs_exist_ok=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    preparer = Preparer(Setup("org/base", MAX_PIXELS), revision="v1")
    try:
        assert (await preparer.prepare(saved(picture()), FIELD, TENANT)).tokens
    finally:
        await preparer.close()
