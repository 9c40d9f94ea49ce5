"""Images by every way in: both clients, the command line, the gateway and files of requests."""

import base64
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner, Result

from loramux import AsyncClient, Client, Image
from loramux.cli.app import app
from loramux.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from loramux.types import ContentPart
from tests.support.gateway import RunningGateway
from tests.support.images import NUM_TOKENS, PLACEHOLDER, prepared
from tests.support.polling import eventually
from tests.support.vision_server import VisionServer

SEEN = PLACEHOLDER * NUM_TOKENS
CAT, DOG = b"\x89PNG a cat", b"GIF89a a dog"
SECRET = b"canary-of-the-picture"
CHAT = "/v1/chat/completions"


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def part(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(data), **more}}


@pytest.fixture(scope="module")
def server() -> Iterator[VisionServer]:
    with VisionServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: VisionServer) -> Iterator[Client]:
    with Client(server.target, retries=False) as client:
        yield client


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, server: VisionServer
) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), server.target) as gateway:
        yield gateway


def last(server: VisionServer) -> tuple[str, list[object]]:
    """Return the last prompt as text, and its images."""
    return server.texts[-1], [placed.image for placed in server.asked[-1].images]


def images(*data: bytes) -> list[object]:
    return [prepared(each).image for each in data]


def test_a_content_is_a_list_of_texts_and_images(
    server: VisionServer, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(CAT)
    contents: list[list[ContentPart]] = [
        ["What is this? ", Image.from_file(tmp_path / "cat.png")],
        ["What is this? ", Image(CAT)],
        ["What is this? ", CAT],
        [{"type": "text", "text": "What is this? "}, part(CAT)],
        ["What is this? ", part(CAT, detail="auto")],
        ["What is this? ", Image.from_data_url(url(CAT, "JPEG"))],
        ["What is this? ", Image.from_data_url(url(CAT, "jpg"))],
    ]
    for content in contents:
        answer = client.chat([{"role": "user", "content": content}], max_tokens=1)
        assert answer.text == "x"
        assert answer.usage.prompt_tokens == len(server.asked[-1].prompt)
        assert last(server) == (f"[user]What is this? {SEEN}[assistant]", images(CAT))
    stream = client.stream(messages=[{"role": "user", "content": [CAT, " or ", DOG]}], n=2)
    assert {chunk.index for chunk in stream} == {0, 1}
    assert last(server) == (f"[user]{SEEN} or {SEEN}[assistant]", images(CAT, DOG))
    client.chat([{"role": "user", "content": ["a", "b"]}])
    assert last(server) == ("[user]ab[assistant]", [])


async def test_the_asynchronous_client_takes_the_same(server: VisionServer) -> None:
    async with AsyncClient(server.target) as client:
        await client.chat([{"role": "user", "content": ["What? ", Image(CAT)]}])
    assert last(server) == (f"[user]What? {SEEN}[assistant]", images(CAT))


WRONG: list[tuple[Any, str, str]] = [
    (CAT, "messages[0].content", "is a bytes; expected text, or a list"),
    ([3], "messages[0].content[0]", "is a int; expected text, an Image"),
    (["x", {"type": "input_audio"}], "messages[0].content[1]", "has type 'input_audio'"),
    ([{"type": "text"}], "messages[0].content[0]", "needs text"),
    ([{"type": "image_url", "image_url": url(CAT)}], "messages[0].content[0]", "an object with"),
    ([part(CAT, detail="high")], "messages[0].content[0]", "detail 'high'; expected 'auto'"),
    ([part(CAT, size=3)], "messages[0].content[0]", "has 'size' in image_url"),
    *(
        ([{"type": "image_url", "image_url": {"url": text}}], "messages[0].content[0]", says)
        for text, says in (
            ("https://example.org/cat.png", "'https://example.org/cat.png'; expected data:image/"),
            ("http://169.254.169.254/latest/meta-data/iam/", "images are not downloaded"),
            ("file:///etc/passwd", "is 'file:///etc/passwd'"),
            ("data:image/svg+xml;base64,PHN2Zz4=", "one of png, jpeg, webp, gif"),
            ("data:text/html;base64,PHN2Zz4=", "expected data:image/KIND;base64"),
            ("data:image/png,abc", "expected data:image/KIND;base64"),
            ("data:image/png;base64,####", "is not valid base64 after 'data:image/png;base64'"),
        )
    ),
]


@pytest.mark.parametrize(("content", "field", "says"), WRONG, ids=[each[2] for each in WRONG])
def test_what_is_no_content_is_named(client: Client, content: Any, field: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        client.chat([{"role": "user", "content": content}])
    assert caught.value.field == field
    assert says in str(caught.value)


def test_several_large_images_fit_a_message(server: VisionServer, client: Client) -> None:
    content = [bytes(1 << 20)] * 3
    client.chat([{"role": "user", "content": content}])
    assert last(server)[1] == images(*content)
    info = client.info()
    assert (info.max_images, info.max_image_bytes) == (3, 1 << 20)
    with pytest.raises(ResourceExhaustedError, match="larger than max"):
        client.chat([{"role": "user", "content": [bytes(info.max_request_bytes)]}])


def test_nothing_that_is_written_down_holds_an_image(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client.chat([{"role": "user", "content": ["What?", Image(SECRET)]}])
    with pytest.raises(InvalidArgumentError) as caught:
        client.chat([{"role": "user", "content": [Image(b"bad" + SECRET)]}])

    def calls() -> list[dict[str, Any]]:
        return [each.__dict__ for each in caplog.records if each.name == "loramux.calls"]

    assert eventually(lambda: len(calls()) == 2)  # each comes after the answer
    reported = f"{calls()}{caplog.text}{caught.value}{Image(SECRET)!r}"
    for form in (SECRET.decode(), base64.b64encode(SECRET).decode(), SECRET.hex()):
        assert form not in reported


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "cat.png", folder / "dog.gif"]
    for path, data in zip(paths, (CAT, DOG), strict=True):
        path.write_bytes(data)
    return paths


def test_the_command_line_shows_images(server: VisionServer, files: list[Path]) -> None:
    def chat(*arguments: str, text: str = "") -> Result:
        shown = [f"--image={path}" for path in files]
        command = ["chat", "--server", server.target, *shown, *arguments]
        return CliRunner().invoke(app, command, input=text)

    found = chat("--once", "What is this?")
    assert (found.exit_code, found.output) == (0, "x\n")
    assert last(server) == (f"[user]{SEEN}{SEEN}What is this?[assistant]", images(CAT, DOG))
    user, answer = json.loads(chat("--json", "What?").output)["messages"]
    assert user["content"] == [
        *({"type": "image", "path": str(path)} for path in files),
        {"type": "text", "text": "What?"},
    ]
    assert answer["content"] == "x"
    # They are shown once, and stay in the conversation.
    assert chat(text="What?\nSure?\n").exit_code == 0
    assert last(server) == (
        f"[user]{SEEN}{SEEN}What?[assistant]x[user]Sure?[assistant]", images(CAT, DOG),
    )  # fmt: skip
    # Others are shown on the way; a conversation that is forgotten takes its images along.
    lines = ("/clear", f"/image {files[1]}", "Who?", "/image nothing.png", "And?", "/exit")
    talk = chat(text="\n".join(lines))
    assert "nothing.png" in talk.output
    assert last(server) == (
        f"[user]{SEEN}Who?[assistant]x[user]And?[assistant]", images(DOG),
    )  # fmt: skip
    gone = chat("--once", "--image=nothing.png", "What?")
    assert gone.exit_code == 2
    assert "nothing.png" in gone.output


def test_openais_client_shows_images(server: VisionServer, gateway: RunningGateway) -> None:
    with openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as client:
        content: Any = [
            {"type": "text", "text": "What? "}, part(CAT), part(DOG, detail="auto"),
        ]  # fmt: skip
        found = client.chat.completions.create(
            model="base", messages=[{"role": "user", "content": content}]
        )
        assert found.choices[0].message.content == "x"
        assert found.usage and found.usage.prompt_tokens == len(server.asked[-1].prompt)
        assert last(server) == (f"[user]What? {SEEN}{SEEN}[assistant]", images(CAT, DOG))
        content = [part(CAT)] * 4
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="base", messages=[{"role": "user", "content": content}]
            )
        assert (caught.value.param, caught.value.code) == ("messages", "invalid_field")


def test_anthropics_blocks_show_images(server: VisionServer, gateway: RunningGateway) -> None:
    data = base64.b64encode(CAT).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "text", "text": "What is this?"}, {"type": "image", "source": source}]
    body = {"model": "base", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    found = gateway.post("/v1/messages", body)
    assert found.json["content"] == [{"type": "text", "text": "x"}]
    assert last(server) == (f"[user]What is this?{SEEN}[assistant]", images(CAT))


def test_a_response_is_of_images(server: VisionServer, gateway: RunningGateway) -> None:
    def asked(openai_client: openai.OpenAI, *data: bytes) -> Any:
        shown = [{"type": "input_image", "image_url": url(each)} for each in data]
        content: Any = [{"type": "input_text", "text": "What? "}, *shown]
        return openai_client.responses.create(
            model="base", instructions="Look.", input=[{"role": "user", "content": content}]
        )

    with openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as openai_client:
        assert asked(openai_client, CAT, DOG).output_text == "x"
        text, seen = last(server)
        assert text.endswith(f"Look.[user]What? {SEEN}{SEEN}[assistant]")
        assert seen == images(CAT, DOG)
        for data, param in (([CAT] * 4, "input"), ([b"bad"], "input[0].content[1].image_url")):
            with pytest.raises(openai.BadRequestError) as caught:
                asked(openai_client, *data)
            assert caught.value.param == param


REFUSED: list[tuple[Any, str, str, str]] = [
    ({"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
     "messages[0].content[1]", "invalid_field", "images are not downloaded"),
    (part(CAT, detail="low"), "messages[0].content[1]", "invalid_field", "'low'; expected 'auto'"),
    *(
        ({"type": kind}, "messages[0].content[1]", "unsupported_parameter", f"has type {kind!r}")
        for kind in ("input_image", "input_audio", "file", "video_url")
    ),
    (part(b""), "messages[0].content[1].image_url", "invalid_field", "is empty"),
    (part(b"bad"), "messages[0].content[1].image_url", "invalid_field", "no image"),
    (part(bytes((1 << 20) + 1)), "messages[0].content[1].image_url", "invalid_field",
     "expected at most 1048576"),
]  # fmt: skip


def test_the_gateway_refuses_by_the_names_of_openai(gateway: RunningGateway) -> None:
    for wrong, param, code, says in REFUSED:
        content = [{"type": "text", "text": "What?"}, wrong]
        body = {"model": "base", "messages": [{"role": "user", "content": content}]}
        found = gateway.post(CHAT, body)
        assert (found.status, found.error["param"], found.error["code"]) == (400, param, code)
        assert found.error["message"].startswith(param)
        assert says in found.error["message"]
    body = {"model": "base", "messages": [{"role": "assistant", "content": [part(CAT)]}]}
    assert gateway.post(CHAT, body).error["param"] == "messages[0].content[0].image_url"


def test_the_gateway_takes_what_the_server_takes(
    server: VisionServer, gateway: RunningGateway
) -> None:
    def asked(*data: bytes) -> Any:
        content = [part(each) for each in data]
        return gateway.post(
            CHAT, {"model": "base", "messages": [{"role": "user", "content": content}]}
        )

    content = [bytes([i]) * (1 << 20) for i in range(3)]
    assert asked(*content).status == 200
    assert last(server)[1] == images(*content)

    def refused(ask: Callable[[], Any]) -> Any:
        for _ in range(20):
            # Who is refused while it still sends may lose the answer with the connection.
            with suppress(ConnectionError):
                return ask()
        raise AssertionError("no answer came")

    found = refused(lambda: asked(bytes(8 << 20)))
    assert (found.status, found.error["code"]) == (413, "body_too_large")
    assert str((4 << 20) + (4 << 20)) in found.error["message"]
    found = refused(lambda: gateway.post("/v1/embeddings", b" " * ((4 << 20) + 1)))
    assert (found.status, found.error["code"]) == (413, "body_too_large")


def test_a_file_of_requests_has_images(server: VisionServer, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, part(CAT)]}]
    line = {
        "custom_id": "a", "method": "POST", "url": CHAT,
        "body": {"model": "base", "messages": messages},
    }  # fmt: skip
    (tmp_path / "asked").write_text(json.dumps(line))
    command = ["batch", str(tmp_path / "asked"), "-o", str(tmp_path / "reported")]
    assert CliRunner().invoke(app, [*command, "--server", server.target]).exit_code == 0
    reported = json.loads((tmp_path / "reported").read_text())
    assert reported["response"]["body"]["choices"][0]["message"]["content"] == "x"
    assert last(server) == (f"[user]a{SEEN}[assistant]", images(CAT))


def test_a_base_without_vision_says_so_to_everybody(tmp_path: Path) -> None:
    why = "its tower is of another kind"
    with (
        VisionServer(supports_images=False, no_vision_reason=why) as without_images,
        Client(without_images.target, retries=False) as client,
    ):
        with pytest.raises(FailedPreconditionError, match=why) as caught:
            client.chat([{"role": "user", "content": ["What?", Image(CAT)]}])
        assert caught.value.field == "messages[0].parts[1].image"
        assert caught.value.reason == "IMAGES_NOT_SERVED"
        assert client.info().max_images == 0
        with RunningGateway(tmp_path, without_images.target) as gateway:
            body = {"model": "base", "messages": [{"role": "user", "content": [part(CAT)]}]}
            error = gateway.post(CHAT, body).error
            assert (error["param"], error["code"]) == (
                "messages[0].content[0].image_url", "images_not_served",
            )  # fmt: skip
            assert why in error["message"]
            assert gateway.post(CHAT, b" " * ((4 << 20) + 1)).status == 413
