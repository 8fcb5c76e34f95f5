"""Who comes in: keys, browsers, HTTPS, a proxy's path, and the id that each request carries."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trustme

from quire_engine.server.api_keys import ApiKeys, keys_of_environment
from quire_engine.startup_error import StartupError
from tests.engine.server import conftest
from tests.engine.server.conftest import Server, StartServer, environment, launch, until

PAGE = {"origin": "https://page.example"}
ASKED = {"model": "tiny", "prompt": "Hello", "max_tokens": 1}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secret") / "keys"
    file.write_text("of-file\n\n  also-of-file\n")
    return file


@pytest.fixture(scope="module")
def guarded(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Server]:
    """A server with keys from everywhere, for pages of one origin, behind a proxy's path."""
    variables = {"QUIRE_API_KEY": "of-quire", "VLLM_API_KEY": "of,vllm", "QUIRE_API_KEYS": "one, two\nthree"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "environment", lambda run_dir: environment(run_dir) | variables)
        flags = ["--served-model-name=tiny", "--api-key", "of-flag", "--api-key=of-another", f"--api-key-file={keys}"]
        browsers = ["--allowed-origins", PAGE["origin"], "--root-path=/llm/"]
        one = launch(tmp_path_factory.mktemp("guarded"), tiny_model_dir, *flags, *browsers)
    one.wait_until_ready()
    yield one
    one.stop()


def get(server: Server, path: str, key: str = "of-flag", **headers: str) -> httpx.Response:
    return httpx.get(server.url + path, headers={"authorization": f"Bearer {key}", **headers})


@pytest.mark.parametrize(
    "key",
    ["of-flag", "of-another", "of-quire", "of,vllm", "one", "two", "three", "of-file", "also-of-file"],
)
def test_a_key_from_each_place_is_taken(guarded: Server, key: str) -> None:
    assert guarded.client(api_key=key).models.list().data[0].id == "tiny"


@pytest.mark.parametrize("key", ["-", "of", "of-flag2", "of-quire,one", "ü", "#"])
def test_any_other_is_a_401(guarded: Server, key: str) -> None:
    answer = httpx.get(f"{guarded.url}/v1/models", headers=[(b"authorization", f"Bearer {key}".encode())])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "AuthenticationError"


def test_keys_of_the_file_change_with_it(guarded: Server, keys: Path) -> None:
    new = keys.with_name("new")
    new.write_text("rotated\n")
    os.replace(new, keys)
    until(lambda: get(guarded, "/v1/models", "rotated").status_code == 200, 10)
    assert get(guarded, "/v1/models", "of-flag").status_code == 200
    keys.write_text("of-file\nalso-of-file\n")
    until(lambda: get(guarded, "/v1/models", "rotated").status_code == 401, 10)
    until(lambda: get(guarded, "/v1/models", "of-file").status_code == 200, 10)


def test_a_browser_asks_without_a_key_and_may_read_refusals_too(guarded: Server) -> None:
    asks = {**PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = httpx.options(f"{guarded.url}/v1/completions", headers=asks)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE["origin"]
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    refused = get(guarded, "/v1/models", "wrong", **PAGE)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == PAGE["origin"]
    other = httpx.options(f"{guarded.url}/v1/completions", headers={**asks, "origin": "https://other.example"})
    assert other.status_code == 400
    assert "access-control-allow-origin" not in get(guarded, "/v1/models", origin="https://other.example").headers


def test_any_page_may_ask_unless_origins_are_named(server: Server) -> None:
    assert get(server, "/v1/models", **PAGE).headers["access-control-allow-origin"] == "*"


def test_a_proxys_path_may_stand_before_each_path(guarded: Server) -> None:
    assert get(guarded, "/llm/v1/models").json()["data"] == get(guarded, "/v1/models").json()["data"]
    assert get(guarded, "/llm/health", "wrong").status_code == 200
    page = httpx.get(f"{guarded.url}/llm", follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/llm/")
    assert get(guarded, "/metrics/", "wrong").status_code == get(guarded, "/metrics", "wrong").status_code == 200
    assert get(guarded, "/llm/v1/models", "wrong").status_code == 401
    assert get(guarded, "/other/v1/models").status_code == 404
    assert get(guarded, "/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]
    client = openai.OpenAI(base_url=f"{guarded.url}/llm/v1", api_key="one", max_retries=0)
    assert client.completions.create(**ASKED).usage.completion_tokens == 1  # type: ignore[call-overload]  # mixed values


def test_a_clients_request_id_comes_back_and_is_the_answers(server: Server) -> None:
    named = {"x-request-id": "my-id.7"}
    answer = httpx.post(f"{server.url}/v1/completions", json=ASKED, headers=named)
    assert answer.headers["x-request-id"] == "my-id.7"
    assert answer.json()["id"] == "cmpl-my-id.7"
    streamed = httpx.post(f"{server.url}/v1/completions", json={**ASKED, "stream": True}, headers=named)
    assert '"id":"cmpl-my-id.7"' in streamed.text
    refused = httpx.post(f"{server.url}/v1/completions", json={}, headers=named)
    assert (refused.status_code, refused.headers["x-request-id"]) == (400, "my-id.7")


def test_other_requests_get_an_id_of_their_own(server: Server) -> None:
    ids = [get(server, "/v1/models").headers["x-request-id"] for _ in range(2)]
    ids += [get(server, "/v1/models", **{"x-request-id": "x" * 129}).headers["x-request-id"]]
    assert len({*ids}) == 3
    assert all(len(one) == 32 for one in ids)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "jsonp", None])
def test_a_body_that_is_not_called_json_is_a_415(server: Server, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert answer.status_code == 415
    assert "content-type: application/json" in answer.json()["error"]["message"]


def test_https_is_served_and_takes_clients_with_a_certificate_alone(start_server: StartServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    own, clients = authority.issue_cert("127.0.0.1"), authority.issue_cert("client.example")
    own.private_key_pem.write_to_path(tmp_path / "key")
    for pem in own.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca")
    files = [f"--ssl-certfile={tmp_path / 'cert'}", f"--ssl-keyfile={tmp_path / 'key'}"]
    server = start_server(*files, f"--ssl-ca-certs={tmp_path / 'ca'}", "--ssl-cert-reqs=2", wait=False)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    url = f"https://127.0.0.1:{server.port}/v1"

    def models(context: ssl.SSLContext) -> Any:
        with openai.OpenAI(
            base_url=url, api_key="none", max_retries=0, http_client=httpx.Client(verify=context)
        ) as client:
            return client.models.list().data

    def known() -> bool:
        try:
            return [model.id for model in models(trusting)] == ["tiny"]
        except (openai.APIConnectionError, openai.InternalServerError):
            assert server.process.poll() is None, server.log
            return False

    with pytest.raises(openai.APIConnectionError):
        models(trusting)
    clients.configure_cert(trusting)
    until(known, conftest.START_SECONDS)
    with pytest.raises(openai.APIConnectionError):
        models(ssl.create_default_context())
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{server.port}/health")


def write_certificate(folder: Path, authority: trustme.CA, *, key: bool = True) -> None:
    """As a mounted Secret changes: each file is whole at any moment."""
    own = authority.issue_cert("127.0.0.1")
    own.private_key_and_cert_chain_pem.write_to_path(folder / "new")
    os.replace(folder / "new", folder / "cert")
    if key:
        own.private_key_pem.write_to_path(folder / "new")
        os.replace(folder / "new", folder / "key")


def trusting(*authorities: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for one in authorities:
        one.configure_trust(context)
    return context


def test_a_new_certificate_is_taken_up_and_a_bad_one_is_not(start_server: StartServer, tmp_path: Path) -> None:
    old, new, stranger = trustme.CA(), trustme.CA(), trustme.CA()
    clients = old.issue_cert("client.example"), new.issue_cert("client.example")
    write_certificate(tmp_path, old)
    old.cert_pem.write_to_path(tmp_path / "ca")
    files = [f"--ssl-{name}={tmp_path / file}" for name, file in (("certfile", "cert"), ("keyfile", "key"))]
    server = start_server(*files, f"--ssl-ca-certs={tmp_path / 'ca'}", "--ssl-cert-reqs=2", wait=False)
    url = f"https://127.0.0.1:{server.port}/health"

    def accepts(context: ssl.SSLContext) -> bool:
        try:
            return httpx.get(url, verify=context).status_code == 200
        except httpx.TransportError:
            assert server.process.poll() is None, server.log
            return False

    of_old, of_new = trusting(old), trusting(new)
    clients[0].configure_cert(of_old)
    clients[1].configure_cert(of_new)
    until(lambda: accepts(of_old), conftest.START_SECONDS)
    with httpx.Client(verify=of_old) as kept:
        assert kept.get(url).status_code == 200

        write_certificate(tmp_path, stranger, key=False)
        until(lambda: accepts(of_old) and "the key is not the certificate's" in server.log, 10)
        (tmp_path / "key").unlink()
        until(lambda: accepts(of_old) and "key cannot be used: No such file" in server.log, 10)

        new.cert_pem.write_to_path(tmp_path / "ca")
        write_certificate(tmp_path, new)
        until(lambda: accepts(of_new), 10)
        assert not accepts(of_old)
        assert kept.get(url).status_code == 200
    assert server.log.count("the certificate of before stays") <= 4  # once for each change, and not for each client
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ssl-certfile=/nowhere"], "--ssl-certfile /nowhere cannot be used: No such file"),
        (["--ssl-certfile={folder}/text"], "it is no certificate and key in PEM"),
        (["--api-key-file={folder}/empty"], "holds no key: write one on each line"),
        (["--api-key-file=/nowhere"], "--api-key-file /nowhere cannot be read"),
        (["--ssl-keyfile=/nowhere"], "--ssl-certfile is missing"),
        (["--ssl-certfile=a", "--ssl-cert-reqs=2"], "name the authorities with --ssl-ca-certs"),
        (["--root-path=llm"], "it must begin with a slash"),
        (["--allowed-origins=[1]"], "--allowed-origins is [1]"),
    ],
)
def test_what_nobody_could_come_in_by_is_refused_at_once(
    start_server: StartServer, tmp_path: Path, flags: list[str], says: str
) -> None:
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "empty").write_text("\n")
    server = start_server(*(flag.format(folder=tmp_path) for flag in flags), wait=False)
    assert server.process.wait(10) in (1, 2)
    assert says in server.log
    assert "Traceback" not in server.log


def test_a_file_of_keys_that_goes_away_leaves_the_last_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire_engine.server.api_keys._LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text("a")
    keys = ApiKeys((), str(file))
    file.unlink()
    assert keys.admit("Bearer a")
    file.write_text("")
    assert not keys.admit("Bearer a")
    with pytest.raises(StartupError, match="holds no key"):
        ApiKeys((), str(file))


def test_comments_and_a_mark_before_the_first_key_are_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("quire_engine.server.api_keys._LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text("\ufeffof-alice\n# Bob's\n  # and more\nof-bob#1\n", encoding="utf-8")
    keys = ApiKeys((), str(file))
    assert [keys.admit(f"Bearer {key}") for key in ("of-alice", "of-bob#1", "# Bob's", "# and more")] == [
        *(True, True, False, False)
    ]
    file.write_text("# none is left\n")
    assert not keys.admit("Bearer of-alice")
    assert "holds no key now" in caplog.text


def test_no_variable_is_no_key() -> None:
    assert keys_of_environment({"QUIRE_API_KEY": "", "QUIRE_API_KEYS": " ,\n"}) == ()
    assert ApiKeys(()).admit("")
