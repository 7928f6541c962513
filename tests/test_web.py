"""The web studio's server and API, over the wire."""

import base64
import json
import re
import shutil
import socket
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from web import get, served, settled

from studio.concepts import Concept, write_concept
from studio.home import Home

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_sdxl, tiny_loras):
    """A home whose library holds milo and rex on a tiny base."""
    home = Home(tmp_path_factory.mktemp("home"))
    for name, file, trigger in (("milo", tiny_loras[0], "sks"), ("rex", tiny_loras[1], "ohwx")):
        folder = home.library / name
        folder.mkdir(parents=True)
        shutil.copy(file, folder / "adapter.safetensors")
        write_concept(Concept(name, trigger, "cat", str(tiny_sdxl), "sdxl", "lora", folder))
    (home.root / "secret.txt").write_text("open sesame")
    return home


@pytest.fixture(scope="module")
def address(place):
    with served(place.root) as found:
        yield found


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


def asked(**more):
    return {"prompt": "a <milo> and a <rex>", "steps": 2, "seed": 3, "method": "merge"} | more


def test_a_composition_is_a_job_and_its_picture_tells_what_was_asked(client, address):
    job = client.predict(asked(boxes={"milo": [0, 0, 0.5, 1]}), api_name="/compose")
    told = settled(client, job)
    assert told["state"] == "done", told
    (picture,) = told["result"]["pictures"]
    answer = get(address, picture["url"])
    assert answer.headers["content-type"] == "image/png"
    written = json.loads(Image.open(BytesIO(answer.content)).info["studio"])
    assert (written["prompt"], written["seed"], written["layout"]) == (asked()["prompt"], 3, {"milo": [0, 0, 0.5, 1]})


def test_no_answer_of_the_api_tells_where_files_lie(client, place):
    job = client.predict(asked(), api_name="/compose")
    settled(client, job)
    said = [client.predict(job, api_name="/job_show"), client.predict("", api_name="/jobs_list")]
    said.append(client.predict(api_name="/concepts_list"))
    assert str(place.root) not in json.dumps(said).replace(str(place.root.parent / "sdxl"), "")


def test_jobs_are_cancelled_and_retried_by_number(client):
    job = client.predict(asked(steps=1000), api_name="/compose")
    client.predict(job, api_name="/job_cancel")
    assert settled(client, job)["state"] == "cancelled"
    client.predict(job, api_name="/job_retry")
    client.predict(job, api_name="/job_cancel")
    assert settled(client, job)["state"] == "cancelled"


@pytest.mark.parametrize(
    ("endpoint", "given"),
    [
        ("/compose", [asked(prompt="a <nobody>")]),
        ("/compose", [asked(method="magic")]),
        ("/compose", [asked(steps=10**9)]),
        ("/compose", [asked(guidance="inf")]),
        ("/compose", [asked(boxes={"milo": [0, 0, 2, 1]})]),
        ("/compose", [asked(boxes={"milo": [0.5, 0, 0.2, 1]})]),
        ("/compose", [asked(boxes={"milo": "all"})]),
        ("/compose", [asked(boxes={f"n{n}": [0, 0, 1, 1] for n in range(99)})]),
        ("/compose", [asked(out="/etc")]),
        ("/compose", [{"prompt": "x" * 9999}]),
        ("/compose", [{}]),
        ("/compose", [asked(concepts={"../../etc": 1})]),
        ("/train_start", ["../../etc", "milo9", "cat", "lora", "quick", {}, False]),
        ("/train_start", ["sample:../milo", "milo9", "cat", "lora", "quick", {}, False]),
        ("/train_start", ["sample:milo", "../evil", "cat", "lora", "quick", {}, False]),
        ("/train_start", ["sample:milo", "a" * 300, "cat", "lora", "quick", {}, False]),
        ("/train_start", ["sample:milo", "m\u0456lo", "cat", "lora", "quick", {}, False]),  # a Cyrillic letter
        ("/train_start", ["sample:milo", "mi\0lo", "cat", "lora", "quick", {}, False]),
        ("/train_start", ["sample:milo", "milo", "cat", "lora", "quick", {}, False]),  # is there already
        ("/train_start", ["sample:milo", "milo9", "cat", "lora", "quick", {"steps": -1}, False]),
        ("/train_start", ["sample:milo", "milo9", "cat", "lora", "quick", {"no_such": 1}, False]),
        ("/train_start", ["sample:milo", "milo9", "cat", "lora", "quick", {"pictures": "/"}, False]),
        ("/compose", [asked(base="/etc")]),
        ("/compose", [asked(clip="/etc")]),
        ("/stylize", [{"prompt": "a <milo>", "content": "/etc/passwd"}]),
        ("/evaluate", [{"names": ["nobody"]}]),
        ("/job_show", [99999]),
        ("/job_cancel", [-1]),
        ("/compose", ["a cat"]),
        ("/compose", [None]),
        ("/stylize", [[1]]),
        ("/evaluate", [3]),
        ("/job_show", ["abc"]),
        ("/job_show", [None]),
        ("/job_pause", [10**30]),
        ("/job_retry", [1.5]),
        ("/jobs_list", ["nonsense"]),
        ("/jobs_list", [["done"]]),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_job(client, endpoint, given):
    before = len(client.predict("", api_name="/jobs_list"))
    with pytest.raises(AppError) as refused:
        client.predict(*given, api_name=endpoint)
    assert re.search(r"\w{2,} .*[.?](\s|$)", str(refused.value))  # a sentence, not the name of a fault
    assert "fault of the studio" not in str(refused.value)
    assert len(client.predict("", api_name="/jobs_list")) == before


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "{home}/secret.txt", "{home}/jobs.sqlite",
     "{home}/library/milo/adapter.safetensors", "secret.txt", "http://127.0.0.1/", "file:///etc/passwd", "{home}/jobs"],
)  # fmt: skip
def test_no_file_but_pictures_is_handed_out(address, place, path):
    answer = get(address, f"/gradio_api/file={path.format(home=place.root)}")
    assert answer.status_code in (400, 403, 404), answer.text[:200]
    assert b"sesame" not in answer.content
    assert b"root:" not in answer.content


@pytest.mark.parametrize(
    "path",
    ["thumbs/../../secret.txt", "thumbs/..%2f..%2fsecret.txt", "thumbs/a.webp", "thumbs/%00.webp", "pictures/1/99",
     "pictures/99999/0", "pictures/-1/0", "pictures/1/..%2f..", "pictures/x/y", "pictures/1/" + "9" * 400],
)  # fmt: skip
def test_our_own_routes_know_only_numbers_and_names_of_their_own(address, path):
    assert get(address, f"/studio/{path}").status_code in (400, 404)


def test_the_first_page_asks_for_nothing_from_elsewhere(address):
    page = get(address, "/")
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/studio/pictures/1/0"])
def test_strangers_are_refused_everywhere(address, path, headers):
    assert get(address, path, **headers).status_code in (403, 421)


def test_an_upload_has_a_limit(address):
    port = int(address.rpartition(":")[2])
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {2 * 2**30}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_with_a_password_every_route_asks_for_it(place):
    with served(place.root, STUDIO_PASSWORD="correct horse") as address:
        for path in (
            "/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x", "/gradio_api/file=x", "/login",
            "/theme.css", "/studio/thumbs/x.webp", "/studio/pictures/1/0", "/monitoring",
            "/gradio_api/heartbeat/x", "/robots.txt", "/manifest.json", "/static/x", "/assets/x", "/docs", "/nowhere",
        ):  # fmt: skip
            assert get(address, path).status_code == 401, path
        for path in ("/gradio_api/run/jobs_list", "/gradio_api/queue/join", "/gradio_api/upload", "/login"):
            assert httpx.post(f"{address}{path}", json={"data": []}, timeout=30).status_code == 401, path
        known = "Basic " + base64.b64encode(b"me:correct horse").decode()
        assert get(address, "/config", authorization=known).status_code == 200
        client = Client(address, verbose=False, headers={"authorization": known})
        assert {one["name"] for one in client.predict(api_name="/concepts_list")} == {"milo", "rex"}


def test_a_refusal_is_a_sentence_in_which_no_place_is_told(client, place):
    with pytest.raises(AppError) as refused:
        client.predict(asked(prompt="a <nobody>"), api_name="/compose")
    assert "There is no concept 'nobody' in the state folder/library. It holds: milo, rex." in str(
        refused.value
    ).replace("\n", " ")
    assert str(place.root) not in str(refused.value)


def test_the_example_of_the_documents_draws_a_picture(address, capsys):
    text = (Path(__file__).parent.parent / "docs" / "web.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(example.replace("http://127.0.0.1:7860", address), {})
    state, picture = capsys.readouterr().out.split()[-2:]
    assert state == "done"
    assert get(address, picture).headers["content-type"] == "image/png"
