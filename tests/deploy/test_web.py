"""The server answers what `predict_images` answers, and nothing that it should not."""

import asyncio
import base64
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

import hcd
from hcd import deploy
from hcd.cli import main
from hcd.deploy.settings import Limits
from hcd.deploy.web import make_app
from hcd.export import prediction

testclient = pytest.importorskip("starlette.testclient", reason="needs pip install 'hcd[test]'")
WORKER = ThreadPoolExecutor(1)
LIMITS = Limits(bytes=400_000, files=8)


@pytest.fixture(scope="module")
def folder(learner, tmp_path_factory):
    metrics = {"valid_auc": 0.75}
    place = tmp_path_factory.mktemp("web") / "model"
    return hcd.save_bundle(learner, place, metrics, splits={"valid_auc": "random"})


@pytest.fixture(scope="module")
def bundle(folder):
    return hcd.load_bundle(folder)


@pytest.fixture
def client(bundle):
    app = make_app(bundle, WORKER, ["127.0.0.1", "::1"], limits=LIMITS)
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def form(*files):
    """Return files as a client sends them: paths, or (name, content)."""
    pairs = [(Path(f).name, Path(f).read_bytes()) if not isinstance(f, tuple) else f for f in files]
    return [("files", (name, content)) for name, content in pairs]


def claiming(width, height):
    """Return the bytes of a PNG whose header claims to be that large."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    checked = len(head[4:]).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + checked


def test_answers_come_in_order_and_bad_files_in_their_place(client, bundle, sample):
    good = sample.test_paths[:3]
    small = cv2.imencode(".png", np.zeros((50, 50, 3), np.uint8))[1].tobytes()
    bad = [
        ("<b>a</b>.tif", Path(good[0]).read_bytes()[:900]),
        ("small.png", small),
        ("empty.tif", b""),
        ("huge.png", claiming(60_000, 60_000)),
    ]
    answers = client.post("/predict", files=form(good[0], *bad, *good[1:])).json()["answers"]
    names = [Path(path).name for path in good]
    assert [a["name"] for a in answers] == [names[0], *(name for name, _ in bad), *names[1:]]
    alone = [hcd.predict_image(bundle, path) for path in good]
    for answer, expected in zip([answers[0], *answers[5:]], alone, strict=True):
        assert (answer["label"], answer["error"]) == (expected.label, "")
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
        assert "picture" not in answer
    texts = ("cannot be decoded", "50 x 50 px", "(0 bytes)", "claims 60000 x 60000 px")
    for answer, (name, _), text in zip(answers[1:5], bad, texts, strict=True):
        assert (answer["label"], answer["probability"]) == ("", None)
        assert answer["error"].startswith(name) and text in answer["error"]


def test_pictures_are_the_patches(client, sample):
    path = sample.test_paths[0]
    files = form(path)
    (answer,) = client.post("/predict?pictures=true", files=files).json()["answers"]
    encoded = np.frombuffer(base64.b64decode(answer["picture"]), np.uint8)
    shown = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(shown, hcd.read_image(path))


def test_pictures_cost_no_second_decoding(bundle, sample, monkeypatch):
    """Of three batches, with a bad file in each."""
    decoded, right = [], prediction.decode_patch

    def counted(content, name, recipe):
        decoded.append(name)
        return right(content, name, recipe)

    monkeypatch.setattr(prediction, "decode_patch", counted)
    paths = (sample.test_paths * 12)[:140]
    files = [(f"{i}.tif", Path(path).read_bytes()) for i, path in enumerate(paths)]
    for place in (0, 70, 139):
        files[place] = (f"{place}.tif", b"no image")
    app = make_app(bundle, WORKER, ["127.0.0.1"])
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as client:
        answers = client.post("/predict?pictures=true", files=form(*files)).json()["answers"]
    assert sorted(decoded) == sorted(name for name, _ in files)
    for number, (path, answer) in enumerate(zip(paths, answers, strict=True)):
        assert answer["name"] == f"{number}.tif"
        if number in (0, 70, 139):
            assert "picture" not in answer and answer["error"]
        else:
            encoded = np.frombuffer(base64.b64decode(answer["picture"]), np.uint8)
            shown = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
            assert np.array_equal(shown, hcd.read_image(path))


def test_where_it_looks(client, bundle, sample):
    path = Path(sample.test_paths[0])
    found = client.post("/explain", files={"file": (path.name, path.read_bytes())})
    expected = hcd.explain_image(bundle, path)
    assert (found.status_code, found.headers["content-type"]) == (200, "image/png")
    assert found.headers["heatmap-title"] == expected.title
    assert found.content == expected.png()
    damaged = client.post("/explain", files={"file": ("a.tif", b"no image")})
    assert damaged.status_code == 422 and damaged.json()["error"].startswith("a.tif (8 bytes)")


def test_health_card_examples_and_openapi(client, bundle):
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["weights_sha256"] == bundle.card["weights_sha256"]
    card = client.get("/model").json()
    assert card["limits"] == bundle.card["limits"] and card["most_files"] == LIMITS.files
    for number in range(card["examples"]):
        patch = client.get(f"/examples/{number}").content
        shape = cv2.imdecode(np.frombuffer(patch, np.uint8), cv2.IMREAD_COLOR).shape
        assert shape == (96, 96, 3)
    assert "ask for 0 to" in client.get(f"/examples/{card['examples']}").json()["error"]
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/health", "/model", "/predict", "/explain", "/examples/{number}"}
    assert "multipart/form-data" in paths["/predict"]["post"]["requestBody"]["content"]


def asked(client, path, sample):
    """Return the answers to questions of every kind that can be put to a route."""
    multipart = {"content-type": "multipart/form-data; boundary=x"}
    if path == "/examples/{number}":
        found = [client.get(f"/examples/{number}") for number in (0, 999, "abc")]
    elif path in ("/predict", "/explain"):
        good, flag = sample.test_paths[0], "?pictures=maybe" if path == "/predict" else ""
        found = [
            client.post(path, files=form(good)),
            client.post(path + flag, files=form(("a.tif", b"no image"))),
            client.post(path, files=form(*[good] * 9)),
            client.post(path, content=b"--x--\r\n", headers=multipart),
            client.post(path, content=b"{}"),
        ]
    else:
        found = [client.get(path)]
    ask = client.post if path in ("/predict", "/explain") else client.get
    return [*found, ask(path, headers={"host": "evil.example"})]


async def stopped_amid(path, method):
    """Return the status that a client gets whose question is cancelled, as a server's end does."""
    from hcd.deploy.guard import Guard

    status = []

    async def send(message):
        status.append(message.get("status"))

    async def never():
        task.cancel()
        await asyncio.sleep(60)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"host", b"127.0.0.1")]}
    guard = Guard(lambda *_: never(), ["127.0.0.1"], {})
    task = asyncio.ensure_future(guard(scope, None, send))
    await task
    return status[0]


def test_every_status_is_named(client, bundle, sample):
    """Those that a route is described with are those that it gives, each in the form that it is
    described to have."""
    from hcd.deploy.schema import REASONS, Answers, Refusal

    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        ((method, operation),) = operations.items()
        given = {asyncio.run(stopped_amid(path, method.upper()))}
        for answer in asked(client, path, sample):
            given.add(answer.status_code)
            described = operation["responses"][str(answer.status_code)]
            (kind,) = described["content"]
            assert answer.headers["content-type"] == kind
            shown = described["content"][kind]["schema"].get("$ref", "")
            if answer.status_code != 200:
                assert shown.endswith("/Refusal") and Refusal(**answer.json()).error
            elif shown:
                assert path == "/predict" and Answers(**answer.json()).answers
        assert {str(status) for status in given} == set(operation["responses"]), path
    sources = "".join(path.read_text("utf-8") for path in Path(deploy.__file__).parent.glob("*.py"))
    literal = re.findall(
        r"(?:HTTPException\(|JSONResponse\([^()]*(?:\(error\))?[^()]*?,)\s*(\d{3})", sources
    )
    assert len(literal) >= 9 and set(map(int, literal)) == set(REASONS)


def test_the_page_comes_from_here_alone(client):
    page = client.get("/")
    assert page.status_code == 200 and "Read this first" in page.text
    for name in ("page.js", "page.css"):
        assert name in page.text and client.get(f"/{name}").status_code == 200
    everything = page.text + client.get("/page.js").text + client.get("/page.css").text
    everything = everything.replace("http://www.w3.org/2000/svg", "")  # a name, not a place
    assert (
        "http:" not in everything and "https:" not in everything and "innerHTML" not in everything
    )
    assert client.get("/docs").status_code == client.get("/../web.py").status_code == 404
    for answer in (page, client.get("/health"), client.post("/predict")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_too_many_files_or_bytes(client, sample):
    patch = Path(sample.test_paths[0]).read_bytes()
    for files in ([("a.tif", b"")] * 9, [("a.tif", patch)] * 5000, [("a.tif", b"0" * 500_000)]):
        answer = client.post("/predict", files=form(*files))
        assert answer.status_code == 413 and "400,000 bytes and 8 files" in answer.json()["error"]


def sent(app, chunks, headers=()):
    """Post a body in chunks as a client may that says nothing of its length; return the status and
    how many chunks were taken."""
    taken, status = [], []
    kind = b"multipart/form-data; boundary=x"
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", kind), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "scheme": "http",
        "http_version": "1.1",
    }
    coming = iter(chunks)

    async def receive():
        chunk = next(coming, None)
        if chunk is None:
            return {"type": "http.disconnect"}
        taken.append(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message):
        status.append(message.get("status"))

    asyncio.run(app(scope, receive, send))
    return status[0] if status else None, len(taken)


HEAD = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.tif"\r\n\r\n'


def test_an_endless_body_is_cut_off(bundle):
    endless = [HEAD, *[b"0" * 100_000] * 1000]
    status, taken = sent(make_app(bundle, WORKER, ["127.0.0.1"], limits=LIMITS), endless)
    assert status == 413 and taken < 10


def test_a_client_that_hangs_up_harms_nobody(bundle, client, sample):
    status, _ = sent(make_app(bundle, WORKER, ["127.0.0.1"], limits=LIMITS), [HEAD, b"0" * 100])
    assert status == 400  # which nobody reads
    assert client.post("/predict", files=form(sample.test_paths[0])).status_code == 200


def test_nothing_that_is_uploaded_comes_to_a_disk(client, sample, monkeypatch):
    def spilled(self):
        raise AssertionError("a file was rolled over to the disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", spilled)
    # that is what starlette's own limit would do
    with tempfile.SpooledTemporaryFile(1) as file, pytest.raises(AssertionError):
        file.write(b"00")
    large = [("a.tif", b"0" * 350_000)]
    assert client.post("/predict", files=form(*large)).status_code == 200


@pytest.mark.parametrize(
    "kind, content, status, text",
    [
        ("application/json", b"{}", 415, "multipart/form-data"),
        ("multipart/form-data", b"", 400, "cannot be read"),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 400, "no files"),
        ("multipart/form-data; boundary=x", b"nonsense", 400, "cannot be read"),
    ],
)
def test_no_form_or_none_that_can_be_read(client, kind, content, status, text):
    answer = client.post("/predict", content=content, headers={"content-type": kind})
    assert answer.status_code == status and text in answer.json()["error"]


@pytest.mark.parametrize(
    "headers, text",
    [
        ({"host": "evil.example"}, "not known as 'evil.example'"),
        ({"host": "127.0.0.1.evil.example:8000"}, "not known as"),
        ({"host": ""}, "not known as"),
        ({"origin": "http://evil.example"}, "may not ask"),
        ({"origin": "http://127.0.0.1:9"}, "may not ask"),
        ({"origin": "null"}, "may not ask"),
        ({"origin": "http://["}, "may not ask"),
        ({"host": "[::1"}, "not known as ''"),
        ({"host": "[::2]:8000"}, "not known as '::2'; start it with --allow ::2"),
        ({"host": "::1:8000"}, "not known as ''"),
        ({"host": "[::1]:8000", "origin": "http://[::1]:9"}, "may not ask"),
        ({"host": "[::1]:8000", "origin": "http://127.0.0.1:8000"}, "may not ask"),
    ],
)
def test_another_page_may_not_ask(client, headers, text):
    answer = client.get("/health", headers=headers)
    assert answer.status_code == 403 and text in answer.json()["error"]
    own = {"origin": "http://127.0.0.1:8000"}
    assert client.get("/health", headers=own).status_code == 200


@pytest.mark.parametrize(
    "known, host",
    [
        ("::1", "[::1]:8000"),
        ("0:0:0:0:0:0:0:1", "[::1]"),
        ("FD00::5", "[fd00:0::5]:80"),
        ("fe80::1%eth0", "[fe80::1]:8000"),  # a client sends no zone, which is its own
    ],
)
def test_addresses_of_ipv6(bundle, known, host):
    app = make_app(bundle, WORKER, ["127.0.0.1", known])
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as client:
        for origin in ({}, {"origin": f"http://{host}"}):
            assert client.get("/health", headers={"host": host, **origin}).status_code == 200
        assert client.get("/health", headers={"host": "[fd00::6]"}).status_code == 403


def test_names_that_were_allowed(bundle):
    app = make_app(bundle, WORKER, ["127.0.0.1", "Lab.Example"])
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as client:
        assert client.get("/health", headers={"host": "LAB.example:81"}).status_code == 200
        proxy = {"origin": "https://lab.example"}  # which hands on under its own name or ours
        assert client.get("/health", headers=proxy).status_code == 200


def test_questions_that_are_none(client):
    for answer in (client.get("/examples/abc"), client.post("/predict?pictures=maybe")):
        assert answer.status_code == 422 and "see /openapi.json" in answer.json()["error"]


def refused(capfd, *arguments):
    assert main(["serve", *map(str, arguments)]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    return err


def test_the_command_refuses_what_cannot_be_served(folder, tmp_path, capfd, monkeypatch):
    assert "card.json is missing" in refused(capfd, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} (Address already" in refused(capfd, folder, "--port", port)
    assert "--port 70000 is no port" in refused(capfd, folder, "--port", 70000)
    assert "give another --port or --host" in refused(capfd, folder, "--host", "999.9.9.9")
    assert "device='gpu'" in refused(capfd, folder, "--device", "gpu")
    assert '--host "" names nothing' in refused(capfd, folder, "--host", "")
    for host in ("[::1", "::1]", "::1::2", "a..b", "127.0.0.1:80"):
        assert f"served at {host}:8000 (" in refused(capfd, folder, "--host", host)
    nowhere = refused(capfd, folder, "--host", "fe80::1%nowhere")
    assert "served at [fe80::1%25nowhere]:8000 (" in nowhere
    for name in ("lab:80", "[lab]", "[::1]:80", "[fd00::5", "fd00::5/64"):
        assert f"{name!r} is no host's name" in refused(capfd, folder, "--allow", name)
    (tmp_path / "model.onnx").write_text("")
    assert "give the model's folder" in refused(capfd, tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'hcd[serve]'" in refused(capfd, folder)


@pytest.mark.long
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(folder, sample, end):
    """One client has hung up, one is amid its upload, one was answered just before."""
    command = [sys.executable, "-m", "hcd.cli", "serve", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        host, port = server.stdout.readline().split("http://")[1].split()[0].split(":")
        place = f"http://{host}:{port}"
        secret = "name-of-a-patient.tif"
        content = Path(sample.test_paths[0]).read_bytes()
        body = HEAD.replace(b"a.tif", secret.encode()) + content + b"\r\n--x--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind['Content-Type']}"
        begun = f"{head}\r\nContent-Length: 9999\r\n\r\n".encode() + HEAD
        with socket.create_connection((host, int(port))) as hanging_up:
            hanging_up.sendall(begun)
        assert urllib.request.urlopen(f"{place}/health", timeout=60).status == 200
        with socket.create_connection((host, int(port))) as stalled:
            stalled.sendall(begun)
            request = urllib.request.Request(f"{place}/predict", body, kind)
            assert secret in urllib.request.urlopen(request, timeout=60).read().decode()
            server.send_signal(end)
            out, err = server.communicate(timeout=120)
    finally:
        server.kill()
    assert server.returncode == 0 and out == "stopped\n"
    assert secret not in out + err and "Traceback" not in err and "fault of hcd" not in err


def has_ipv6():
    """Say whether this machine has IPv6's own address of itself."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.long
@pytest.mark.skipif(not has_ipv6(), reason="needs a machine with IPv6")
@pytest.mark.parametrize(
    "host, shown", [("::1", "[::1]"), ("[0:0::1]", "[0:0::1]"), ("::", "[::]")]
)
def test_the_command_serves_on_ipv6(folder, host, shown):
    command = [sys.executable, "-m", "hcd.cli", "serve", str(folder), "--port", "0", "--host", host]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        place = server.stdout.readline().split(" answers at ")[1].split()[0]
        assert place.startswith(f"http://{shown}:")
        for url in (place, place.replace(shown, "[::1]")):
            assert urllib.request.urlopen(f"{url}/health", timeout=60).status == 200
        server.send_signal(signal.SIGTERM)
        assert server.communicate(timeout=120) == ("stopped\n", "")
    finally:
        server.kill()
