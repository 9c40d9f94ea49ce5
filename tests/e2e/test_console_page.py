"""The console as people see it: a real browser, a real gateway, a real server of the demo."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux_server.access.caller import Role
from tests.support.browser import LACKS, Browser, Page, browser_path
from tests.support.console import Site, serving
from tests.support.demo import DEMO
from tests.support.packages import packed
from tests.support.polling import eventually

pytestmark = pytest.mark.skipif(browser_path() is None, reason=LACKS)

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
ENTER, ESCAPE, CTRL = ("Enter", 13), ("Escape", 27), 2


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("console")
    adapters = ("--adapters", str(DEMO / "adapters"))
    with serving(folder, DEMO / "base", "public", *adapters) as site:
        yield site


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two packages that do what `upper` does, in chats, too, the second with a hostile text."""
    folder = tmp_path_factory.mktemp("packages")
    found = []
    for number, text in enumerate(("somebody/base", HOSTILE)):
        source = shutil.copytree(DEMO / "adapters" / "upper", folder / str(number))
        config = json.loads((source / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = text
        (source / "adapter_config.json").write_text(json.dumps(config))
        (source / "chat_template.jinja").write_text(
            "{{ bos_token }}{{ messages[-1]['content'] }} ->"
        )
        found.append(folder / f"Shout {number}.safetensors")
        found[-1].write_bytes(packed(source))
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = browser_path()
    assert path is not None
    browser = Browser(path, tmp_path_factory.mktemp("browser"))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """The console of an administrator."""
    with browser.page() as page:
        page.resize(1280, 900)
        page.open(site.url)
        page.write("#key-input", site.keys[Role.ADMIN])
        page.press(*ENTER)
        page.wait("document.querySelectorAll('#adapters tbody tr').length >= 12")
        yield page
        assert page.complaints == []
        assert page.js("window.hacked") is None
        assert all(url.startswith(site.url) and "lmx_" not in url for url in page.requests)


def names(page: Page) -> list[str]:
    """Return what the table names."""
    found = page.js("[...document.querySelectorAll('#adapters button.name')].map(b => b.innerText)")
    assert isinstance(found, list)
    return found


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Browser, site: Site) -> None:
    with browser.page() as page:
        page.open(site.url)
        page.wait("document.querySelector('dialog .notice')")
        assert "UNAUTHENTICATED" in page.text("dialog .notice")
        assert names(page) == []
        page.write("#key-input", "lmx_wrong")
        page.press(*ENTER)
        page.wait("document.querySelector('dialog .notice')?.innerText.includes('UNAUTHENTICATED')")
        page.write("#key-input", site.keys[Role.VIEWER])
        page.click("dialog button.primary")
        page.wait("document.querySelectorAll('#adapters tbody tr').length >= 12")
        assert page.js("Object.keys(localStorage).length") == 0
        assert page.js("Object.values(sessionStorage)") == [site.keys[Role.VIEWER]]
        assert page.js("document.cookie") == ""
        # What a viewer may not do is there, and refused by the server.
        page.click("nav a", "Server")
        page.wait("document.querySelector('#server-body .notice')")
        assert "PERMISSION_DENIED" in page.text("#server-body .notice")
        assert site.keys[Role.VIEWER] not in page.js("document.documentElement.outerHTML")
        assert not [url for url in page.requests if "lmx_" in url]


def test_adapters_are_seen_and_filtered(page: Page, site: Site) -> None:
    assert {"reverse", "upper"} <= set(names(page))
    page.write("#filter", "rev")
    page.wait("document.querySelectorAll('#adapters tbody tr').length === 1")
    assert names(page) == ["reverse"]
    page.write("#filter", HOSTILE)
    page.wait("!document.querySelector('#no-adapters').hidden")
    page.write("#filter", "")
    page.wait("document.querySelectorAll('#adapters tbody tr').length >= 12")
    with site.client() as client:
        client.generate("cat ->", adapter="title", max_tokens=4)
        page.wait(
            "[...document.querySelectorAll('#adapters tbody tr')].some(row =>"
            " row.innerText.startsWith('title') && row.innerText.includes('device'))"
        )


def test_two_answers_come_side_by_side(page: Page) -> None:
    page.click("nav a", "Playground")
    page.click(".segments input[value=completion] + span")
    for field, text in (
        ("#model-a", "reverse"), ("#model-b", "upper"), ("#temperature", "0"),
        ("#prompt", "abandon ->"),
    ):  # fmt: skip
        page.write(field, text)
    page.press(*ENTER, CTRL)
    page.wait("document.querySelectorAll('.answer .numbers dd').length === 8")
    page.wait("!document.querySelector('#run').hidden")
    texts = page.js("[...document.querySelectorAll('.answer .text')].map(each => each.innerText)")
    assert texts == ["abandon -> nodnaba", "abandon -> ABANDON"]
    assert page.text(".answer .identity").startswith("public/reverse:1 sha256:ceb9c1a2")
    page.write("#model-b", "")
    page.write("#prompt", HOSTILE)
    page.write("#max-tokens", "4")
    page.click("#run")
    page.wait("!document.querySelector('#run').hidden")
    assert page.text(".answer .text").startswith(HOSTILE)
    page.write("#model-a", "nobody")
    page.click("#run")
    page.wait("document.querySelector('.answer .notice')")
    assert "nobody" in page.text(".answer .notice")
    page.click(".segments input[value=chat] + span")
    page.write("#model-a", "reverse")
    page.write("#prompt", "abandon")
    page.write("#max-tokens", "32")
    page.click("#run")
    page.wait("document.querySelector('.answer .text')?.innerText === ' nodnaba'")


def test_a_conversation_goes_on(page: Page, site: Site, packages: list[Path]) -> None:
    with site.client() as client:
        client.adapters.upload("talker", packages[1])
    page.click("nav a", "Playground")
    page.click(".segments input[value=chat] + span")
    for field, text in (("#model-a", "talker"), ("#model-b", ""), ("#temperature", "0")):
        page.write(field, text)
    for number, word in enumerate(("cat", "dog"), 1):
        page.write("#prompt", word)
        page.click("#run")
        page.wait(f"document.querySelectorAll('.answer .turn').length === {number}")
        page.wait("!document.querySelector('#run').hidden")
        assert page.js("document.querySelector('#prompt').value") == ""
    turns = page.js("[...document.querySelectorAll('.answer .turn')].map(each => each.innerText)")
    assert [turn.split() for turn in turns] == [["cat", "CAT"], ["dog", "DOG"]]
    asked = [json.loads(body)["messages"] for body in page.sent if "messages" in body]
    said = [[message["content"].strip() for message in messages] for messages in asked]
    assert said == [["cat"], ["cat", "CAT", "dog"]]
    page.click("#anew")
    page.wait("!document.querySelector('.answer .turn')")


def test_a_stream_is_stopped_in_the_engine(page: Page, site: Site) -> None:
    page.click("nav a", "Playground")
    page.write("#model-a", "base")
    page.write("#model-b", "")
    page.write("#temperature", "2")  # so that it seldom ends before it is stopped
    page.write("#max-tokens", "200")

    # It may end by itself, which empties the prompt of a chat: then there is another one to stop.
    def is_stopped() -> bool:
        page.write("#prompt", "a")
        page.click("#run")
        page.wait(
            "!document.querySelector('#run').hidden || "
            "document.querySelector('.answer .text')?.innerText.length > 1"
        )
        page.js("document.querySelector('#stop').click()")
        page.wait("!document.querySelector('#run').hidden")
        return "stopped" in page.text(".answer .numbers")

    assert eventually(is_stopped)
    assert eventually(lambda: site.server.metrics()["loramux_requests_running"] == 0)


def test_a_package_is_dropped_and_its_alias_moved(
    page: Page, site: Site, packages: list[Path]
) -> None:
    for number, package in enumerate(packages):
        page.drop("#title-adapters", package)
        page.wait("document.querySelector('dialog .file-text')")
        assert package.name in page.text("dialog .file-text")
        assert page.js("document.querySelector('#upload-name').value") == f"shout-{number}"
        page.write("#upload-name", "shout")
        page.click("dialog button.primary")
        page.wait(f"document.querySelector('#toasts').innerText.includes('shout:{number + 1}')")
        page.wait("!document.querySelector('dialog')")
    with site.client() as client:
        assert client.adapters.get("shout:2").base_model == HOSTILE
    page.click("button.name", "shout")
    page.wait(f"document.querySelector('.drawer .facts').innerText.includes({json.dumps(HOSTILE)})")
    page.click(".drawer button", "New alias")
    page.write(".alias-new form input", "stable")
    page.click(".alias-form .primary")
    page.wait("document.querySelector('.alias .split')?.innerText === 'v2'")
    with site.client() as client:
        assert client.adapters.aliases("shout") == {"stable": {2: 1}}
        page.click(".alias-tools button", "Move")
        # Somebody is faster.
        client.adapters.set_alias("shout", "stable", weights={1: 9, 2: 1})
        page.wait("document.querySelector('.alias .split').innerText.includes('90')")
        page.js("document.querySelector('.alias-form select').value = '1'")
        page.click(".alias-form .primary")
        page.wait("document.querySelector('.alias-form .notice')")
        assert "ABORTED" in page.text(".alias-form .notice")
        assert client.adapters.aliases("shout") == {"stable": {1: 9, 2: 1}}
        page.click(".alias-form button", "Show current target")
        page.wait("!document.querySelector('.alias-form .notice')")
        page.click(".alias-form .primary")
        page.wait("document.querySelector('.alias .split').innerText === 'v1'")
        assert client.adapters.aliases("shout") == {"stable": {1: 1}}
        page.click(".alias-tools button", "Log")
        page.wait("document.querySelectorAll('.moves li').length === 3")
        page.click(".drawer button", "Pin")
        page.wait("document.querySelector('.version-list').innerText.includes('pinned')")
        assert client.adapters.get("shout:2").is_pinned
        page.click(".drawer footer button", "Delete adapter")
        assert page.js("document.querySelector('.box button.danger').disabled")
        page.write(".box input", "shout")
        page.click(".box button.danger")
        page.wait("!document.querySelector('dialog')")
        page.wait("!document.querySelector('#adapters').innerText.includes('shout')")
        assert "shout" not in {adapter.name for adapter in client.adapters.list()}


def test_what_the_server_refuses_is_reported(page: Page, packages: list[Path]) -> None:
    page.drop("#title-adapters", packages[0])
    page.write("#upload-name", "reverse")
    page.click("dialog button.primary")
    page.wait("document.querySelector('dialog .notice')")
    assert "comes from the --adapters directory" in page.text("dialog .notice")
    page.write("#upload-name", HOSTILE)
    page.click("dialog button.primary")
    page.wait("document.querySelector('dialog .notice')?.innerText.includes('<script>')")


def test_the_server_shows_what_it_does(page: Page, site: Site) -> None:
    page.click("nav a", "Server")
    page.wait("document.querySelectorAll('.tile').length === 8")
    page.wait("document.querySelector('.chart-line').getAttribute('d')?.includes('L')")
    assert "LlamaForCausalLM" in page.text("#server-body")
    with site.client() as client:
        client.generate("cat ->", adapter="sort", max_tokens=4)
    page.click(".busiest button", "sort")
    page.wait("document.querySelector('.drawer h2').innerText === 'sort'")
    page.press(*ESCAPE)
    page.wait("!document.querySelector('dialog')")


def test_whatever_can_be_used_has_a_name(page: Page) -> None:
    roles = {"button", "checkbox", "combobox", "link", "radio", "searchbox", "spinbutton",
             "textbox"}  # fmt: skip

    def unnamed() -> list[str]:
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        used = [node for node in nodes if node.get("role", {}).get("value") in roles]
        assert len(used) >= 5
        return [str(node) for node in used if not node["name"]["value"].strip()]

    for view in ("Server", "Playground", "Adapters"):
        page.click("nav a", view)
        assert unnamed() == []
    page.click("#upload-button")
    assert unnamed() == []
    page.press(*ESCAPE)
    page.click("button.name", "reverse")
    page.click(".drawer button", "New alias")
    assert unnamed() == []
