import asyncio
import base64
import logging

import pytest

from studio.ui.guard import LOOPBACK, MOST_BODY, Guard

HOST = "127.0.0.1:7860"


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"ALLOW")]})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(guard, path="/", kind="http", **headers):
    """(status, headers, body) of a request with such headers."""
    told = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in told.items() if value is not None]
    scope = {"type": kind, "method": "GET", "path": path, "headers": pairs, "client": ("127.0.0.1", 5)}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, None, send))
    body = b"".join(one.get("body", b"") for one in sent)
    return sent[0].get("status", sent[0].get("code")), dict(sent[0].get("headers", [])), body


def basic(password, user="anyone"):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def guard():
    return Guard(application, (*LOOPBACK, "studio.example"))


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860", "studio.example:443"])
def test_the_server_answers_to_its_own_names(guard, host):
    assert ask(guard, host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "", None, "[", "169.254.1.1"])
def test_another_name_is_refused_as_in_dns_rebinding(guard, host):
    assert ask(guard, host=host)[0] == 421


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:7860", "http://127.0.0.1:1", "null", "http://127.0.0.1:7860.x"]
)
def test_requests_that_another_site_makes_are_refused(guard, origin):
    assert ask(guard, origin=origin)[0] == 403


def test_the_pages_own_requests_and_links_from_elsewhere_come_through(guard):
    assert ask(guard, origin=f"http://{HOST}")[0] == 200
    assert ask(guard, sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200
    assert ask(guard, sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403


@pytest.mark.parametrize("length", [str(MOST_BODY + 1), "-1", "many", "9" * 40])
def test_a_body_too_large_or_of_no_size_is_refused_unread(guard, length):
    assert ask(guard, content_length=length)[0] == 413


def test_every_answer_forbids_frames_sniffing_and_other_hosts(guard):
    for status, headers, _ in (ask(guard), ask(guard, host="evil.example")):
        assert headers[b"x-frame-options"] == b"DENY", status
        assert headers[b"x-content-type-options"] == b"nosniff"
        policy = headers[b"content-security-policy"].decode()
        assert "default-src 'self'" in policy
        assert "http" not in policy.replace("http-equiv", "")


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/studio/pictures/1/0", "/anything/new"])
def test_without_the_password_nothing_is_told_on_any_path(path, caplog):
    guard = Guard(application, LOOPBACK, "correct horse")
    with caplog.at_level(logging.WARNING, "studio.server"):
        status, headers, body = ask(guard, path)
    assert (status, headers[b"www-authenticate"][:5]) == (401, b"Basic")
    assert b"inside" not in body
    assert path in caplog.text


@pytest.mark.parametrize(
    "given",
    [None, "", "Basic", "Basic !!!", basic("wrong"), basic(""), "Bearer correct horse", basic("correct horse ")[:-4],
     "Basic " + base64.b64encode(b"\xff\xfe:correct horse").decode()],
)  # fmt: skip
def test_a_wrong_password_is_refused(given):
    assert ask(Guard(application, LOOPBACK, "correct horse"), authorization=given)[0] == 401


@pytest.mark.parametrize("password", ["correct horse", "pässwörd:with:colons"])
def test_the_password_opens_under_any_user_name(password):
    guard = Guard(application, LOOPBACK, password)
    assert ask(guard, authorization=basic(password))[2] == b"inside"
    assert ask(guard, authorization=basic(password, user=""))[0] == 200


def test_a_websocket_is_guarded_too(guard):
    assert ask(guard, kind="websocket", host="evil.example")[0] == 1008
