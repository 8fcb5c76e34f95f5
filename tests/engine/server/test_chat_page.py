"""The chat page as people use it: in a real browser, against a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.engine.server.browser import chromium
from tests.engine.server.conftest import Server, StartServer

SCREENS = {"phone": {"width": 360, "height": 740}, "desk": {"width": 1200, "height": 800}}
FIGURES = re.compile(r"\d+ tokens? · [\d.]+ tokens/s · first after [\d.]+ s")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(30_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    context.close()
    assert wrong == [], "the page's script failed"


def opened(page: Page, server: Server) -> Page:
    page.goto(server.url)
    expect(page.locator("#model")).to_have_value("tiny")
    return page


def set_in_settings(page: Page, **values: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for name, value in values.items():
        page.locator(f"#{name}").fill(value)
    page.get_by_role("button", name="Settings").click()


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def test_an_answer_is_streamed_and_its_speed_told(page: Page, server: Server) -> None:
    opened(page, server)
    set_in_settings(page, max_tokens="20", temperature="0")
    say(page, "What is a class?")
    answer = page.locator(".turn.assistant")
    expect(answer.locator(".figures")).to_have_text(FIGURES)
    asked = {"role": "user", "content": "What is a class?"}
    whole = server.client().chat.completions.create(model="tiny", messages=[asked], max_tokens=20, temperature=0)  # type: ignore[list-item]  # plain dicts, as they are sent
    assert answer.locator(".text").text_content() == whole.choices[0].message.content


def test_settings_reach_the_server_with_the_whole_conversation(page: Page, server: Server) -> None:
    opened(page, server)
    set_in_settings(page, system="You are brief.", max_tokens="5", temperature="0.5", top_p="0.9", seed="7")
    page.locator("#model").select_option("small")
    say(page, "one")
    expect(page.locator(".figures")).to_have_text(FIGURES)
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "two")
    body = sent.value.post_data_json
    assert isinstance(body, dict)
    messages = body.pop("messages")
    assert [(m["role"]) for m in messages] == ["system", "user", "assistant", "user"]
    assert (messages[0]["content"], messages[3]["content"]) == ("You are brief.", "two")
    assert body == {
        "model": "small",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 5,
        "seed": 7,
    }


def test_stop_ends_the_answer_here_and_in_the_engine(page: Page, server: Server) -> None:
    opened(page, server)
    page.route("**/v1/chat/completions", _without_end)
    say(page, "Go on and on.")
    expect(page.locator(".turn.assistant .text")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".figures")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    _until_idle(page, server)


def _without_end(route: Route) -> None:
    """Let the engine go on until it is stopped: so small a model may find its end before anybody can press a button."""
    body = route.request.post_data_json | {"ignore_eos": True}
    route.continue_(post_data=body)


def _until_idle(page: Page, server: Server) -> None:
    for _ in range(100):
        if server.metric("vllm:num_requests_running") == 0:
            return
        page.wait_for_timeout(100)
    pytest.fail("the engine goes on after Stop")


def test_the_conversation_outlives_a_reload_and_can_be_begun_anew(page: Page, server: Server) -> None:
    opened(page, server)
    set_in_settings(page, max_tokens="3", system="Be kind.")
    say(page, "Remember me.")
    expect(page.locator(".figures")).to_have_text(FIGURES)
    page.reload()
    expect(page.locator(".turn.user")).to_have_text("Remember me.")
    expect(page.locator("#system")).to_have_value("Be kind.")
    page.get_by_role("button", name="New").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.reload()
    expect(page.locator(".turn")).to_have_count(0)


def test_text_that_looks_like_html_stays_text(page: Page, server: Server) -> None:
    opened(page, server)
    say(page, "<img src=x onerror=alert(1)>")
    expect(page.locator(".turn.user")).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator(".turn img").count() == 0


def test_what_the_server_refuses_is_said_and_can_be_asked_otherwise(page: Page, server: Server) -> None:
    opened(page, server)
    set_in_settings(page, max_tokens="10000000")
    say(page, "Too much.")
    expect(page.locator(".wrong")).to_contain_text("max_tokens")
    set_in_settings(page, max_tokens="3")
    say(page, "Better.")
    expect(page.locator(".figures")).to_have_text(FIGURES)
    expect(page.locator(".turn.user")).to_have_text("Better.")


def test_a_key_is_asked_for_and_forgotten_with_the_tab(browser: Browser, start_server: StartServer) -> None:
    server = start_server("--api-key", "secret")
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#hint")).to_contain_text("API key")
    page.locator("#key").fill("secret")
    page.locator("#key").press("Tab")
    expect(page.locator("#model")).to_have_value("tiny")
    page.reload()
    expect(page.locator("#model")).to_have_value("tiny")
    assert "secret" not in str(context.storage_state())  # which has what a browser keeps on disk
    other = context.new_page()
    other.goto(server.url)
    expect(other.locator("#hint")).to_contain_text("API key")
    context.close()


@pytest.mark.parametrize("screen", SCREENS)
def test_it_fits_a_phone_and_a_desk(browser: Browser, server: Server, tmp_path: Path, screen: str) -> None:
    """Leaves pictures in `tmp_path`, for whoever has changed the page to look at."""
    context = browser.new_context(viewport=SCREENS[screen])  # type: ignore[arg-type]  # a plain dict, as it is sent
    page = opened(context.new_page(), server)
    set_in_settings(page, max_tokens="60")
    say(page, "word" * 60)
    expect(page.locator(".figures")).to_have_text(FIGURES)
    for shown in ("chat", "settings"):
        assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen]["width"]
        expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
        page.screenshot(path=tmp_path / f"{screen}-{shown}.png")
        page.get_by_role("button", name="Settings").click()
    context.close()


def test_nothing_is_loaded_from_elsewhere(page: Page, server: Server) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, server)
    assert {url.removeprefix(server.url) for url in asked} == {"/", "/v1/models"}
    assert "default-src 'none'" in httpx.get(server.url).headers["content-security-policy"]


def test_without_the_page_there_is_nothing(start_server: StartServer) -> None:
    server = start_server("--no-ui")
    answer = httpx.get(server.url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)
