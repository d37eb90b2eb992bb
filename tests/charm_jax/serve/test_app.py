"""The server in this process, on the finished run: answers, limits and refusals."""

import asyncio
import concurrent.futures
import contextlib
import io
import json
import logging
import os
import tempfile
import threading
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from running import command_here

from charm_jax.runs import portable
from charm_jax.serve import decoding
from charm_jax.serve.decoding import Decoder

client_module = pytest.importorskip("starlette.testclient")
for package in ("python_multipart", "prometheus_client"):
    pytest.importorskip(package)
site = pytest.importorskip("charm_jax.serve.app")
uploads = pytest.importorskip("charm_jax.serve.uploads")

LOCAL = "http://127.0.0.1:8000"
TOKEN = "a token of twenty-odd letters"


@pytest.fixture(scope="module")
def client(service, decoder):
    with client_module.TestClient(site.create_app(service, decoder), LOCAL) as client:
        yield client


@pytest.fixture(scope="module")
def chest(finished):
    """A test image as bytes."""
    phantom = finished[0] / "data/phantom"
    return (phantom / "images" / (phantom / "test_list.txt").read_text().split()[0]).read_bytes()


def png(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()


def send(client, content, path="/api/predict", name="x.png", **options):
    return client.post(path, files={"image": (name, content)}, **options)


def explained(client, chest):
    answer = send(client, chest, "/api/explain")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_upload_gets_the_record_of_predict(client, chest, finished, tmp_path):
    record = send(client, chest).json()
    (tmp_path / "stranger.png").write_bytes(chest)
    arguments = (str(tmp_path / "stranger.png"), "--nooverlays")
    done = command_here("predict", *arguments, cwd=finished[0])
    wanted = json.loads(done.stdout)
    assert [wanted.pop(name) for name in ("known_as", "seen_in_training")] == [None, False]
    assert {*wanted} - {*record} == {"file"}
    assert record["run"] == "demo"
    for name, value in record.items():
        if name in ("scores", "logits", "without_memory"):
            assert value == pytest.approx(wanted[name], abs=2e-5)
        elif name in ("findings", "warnings", "unfamiliar", "checkpoint", "memory", "note"):
            assert value == wanted[name]
    assert [e["case"] for e in record["evidence"]] == [e["case"] for e in wanted["evidence"]]


def test_requests_at_a_time_share_batches_and_keep_their_answers(client, chest, service):
    grey = np.array(Image.open(io.BytesIO(chest)).convert("L"))
    images = [png(np.roll(grey, shift, axis=1)) for shift in range(6)]
    alone = [send(client, image).json()["logits"] for image in images]
    sizes = []
    predict, begun, go = service.predict, threading.Event(), threading.Event()

    def counted(some):
        sizes.append(len(some))
        begun.set()
        assert go.wait(20)
        return predict(some)

    with (
        mock.patch.object(service, "predict", counted),
        concurrent.futures.ThreadPoolExecutor(6) as pool,
    ):
        first = pool.submit(send, client, images[0])
        assert begun.wait(20)
        others = [pool.submit(send, client, image) for image in images[1:]]
        while "charm_jax_queue 6.0" not in client.get("/metrics").text:
            assert not first.done()
        go.set()
        answers = [future.result() for future in (first, *others)]
    assert sizes[0] == 1
    assert sum(sizes) == 6
    assert len(sizes) < 6
    for answer, wanted in zip(answers, alone, strict=True):
        assert answer.json()["logits"] == pytest.approx(wanted, abs=1e-4)


def test_an_explanation_has_what_the_page_draws(client, chest):
    explanation = explained(client, chest)["explanation"]
    about = client.get("/api/model").json()
    names = [finding["name"] for finding in about["findings"]]
    assert {*explanation["heat_maps"]} == {*names, "attention"}
    heat = np.array(explanation["heat_maps"][names[0]])
    assert heat.ndim == 2
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert explanation["image"].startswith("data:image/png;base64,")
    assert 0 < about["findings"][0]["prevalence"] < 1
    assert about["memory_cases"] > 0
    assert explanation["thumbnails"] == {}


def test_thumbnails_are_those_of_a_portable_model(client, chest, monkeypatch, tmp_path):
    monkeypatch.setattr(portable, "THUMBNAILS", str(tmp_path))
    case = explained(client, chest)["evidence"][0]["case"]
    portable.thumbnail_path(tmp_path, case).write_bytes(png(np.zeros((4, 4), np.uint8)))
    shown = explained(client, chest)["explanation"]["thumbnails"]
    assert list(shown) == [case]
    assert shown[case].startswith("data:image/png;base64,")


def test_forgetting_a_case_changes_logits_by_its_contribution(client, chest):
    record = explained(client, chest)
    entry = record["evidence"][0]
    asked = {"features": record["explanation"]["features"], "cases": []}
    before = client.post("/api/forget", json=asked).json()
    assert before["logits"] == pytest.approx(record["logits"], abs=1e-4)
    after = client.post("/api/forget", json=asked | {"cases": [entry["case"]]}).json()
    assert entry["case"] not in [other["case"] for other in after["evidence"]]
    for finding, contribution in entry["contributions"].items():
        change = record["logits"][finding] - after["logits"][finding]
        assert change == pytest.approx(contribution, abs=1e-4)
    assert any(abs(value) > 1e-3 for value in entry["contributions"].values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cases": ["../../etc/passwd"]}, "A case is not in the memory"),
        ({"cases": "a"}, "cases are not valid"),
        ({"cases": ["a"] * 200}, "cases are not valid"),
        ({"features": "AAAA"}, "features are not valid"),
        ({"features": 3}, "features are not valid"),
        ({"features": "?"}, "features are not valid"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(client, chest, changes, words):
    features = explained(client, chest)["explanation"]["features"]
    answer = client.post("/api/forget", json={"features": features, "cases": []} | changes)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_no_json_is_refused(client):
    for body in (b"", b"[" * 100_000, b"\xff"):
        assert client.post("/api/forget", content=body).status_code == 400
    for body in (b"null", b"3", b"[]", b'"x"', b"{}", b'{"features": NaN}'):
        assert client.post("/api/forget", content=body).status_code == 422
    assert client.post("/api/forget", content=bytes(2**18 + 1)).status_code == 413


def test_what_is_no_image_is_refused_in_one_sentence(client, chest):
    for content, status, words in (
        (b"", 422, "empty"),
        (b"no image", 422, "not a PNG, JPEG, TIFF or DICOM"),
        (chest[:-40], 422, "cannot be read"),
        (b"<svg onload=alert(1)>", 422, "not a PNG"),
    ):
        answer = send(client, content)
        assert answer.status_code == status
        assert words in answer.json()["error"]
    assert client.post("/api/predict", content=chest).status_code == 415
    assert client.post("/api/predict", data={"image": "text"}).status_code == 415
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/api/predict", content=b"--y\r\n", headers=form).status_code == 400
    other = client.post("/api/predict", files={"other": chest})
    assert (other.status_code, other.json()["error"][:20]) == (422, "The form has no file")
    two = client.post("/api/predict", files=[("image", chest), ("image", chest)])
    assert two.status_code == 400


def test_too_many_pixels_and_too_many_bytes_are_refused(client, monkeypatch):
    bomb = png(np.zeros((9001, 9001), np.uint8), compress_level=9)
    assert len(bomb) < 200_000
    answer = send(client, bomb)
    assert answer.status_code == 413
    assert "9001 x 9001 pixels" in answer.json()["error"]
    monkeypatch.setattr(uploads, "MOST_BYTES", 1000)
    monkeypatch.setattr(uploads, "_AROUND", 500)
    assert send(client, bytes(2000)).status_code == 413

    def chunks():  # without a Content-Length
        for _ in range(20):
            yield bytes(100)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/api/predict", content=chunks(), headers=headers)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


def test_a_decoder_that_crashes_or_hangs_is_replaced(service, chest, capfd):
    predictor = service.predictor
    file = io.BytesIO()
    Image.open(io.BytesIO(chest)).convert("L").save(file, "TIFF", compression="tiff_lzw")

    async def decode():
        with contextlib.closing(
            Decoder(predictor.size, predictor.value_range, processes=1, seconds=0.001)
        ) as decoder:
            with pytest.raises(decoding.Refusal, match="took longer"):
                await decoder.decode(chest, with_view=False)
            decoder._seconds = 20.0
            os.kill(decoder._every[0]._process.pid, 9)
            with (
                mock.patch("multiprocessing.context.SpawnProcess.start", side_effect=OSError),
                pytest.raises(OSError),
            ):
                await decoder.decode(chest, with_view=False)
            read = await decoder.decode(chest, with_view=False)
            with pytest.raises(decoding.Refusal, match="cannot be read"):
                await decoder.decode(file.getvalue().replace(b"\x80", b"\x81"), with_view=False)
            return read, decoder.killed

    read, killed = asyncio.run(decode())
    assert read.square.shape == (predictor.size, predictor.size, 1)
    assert killed == 1
    assert not capfd.readouterr().err  # what libtiff writes of a damaged file


def test_a_view_keeps_16_bits(service):
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    packed = np.array(Image.open(io.BytesIO(decoding.packed(grey)))).astype(int)
    np.testing.assert_array_equal(packed[..., 0] * 256 + packed[..., 1], grey)


def test_a_full_queue_answers_429(service, decoder, chest):
    begun, go = threading.Event(), threading.Event()

    def slow(some):
        begun.set()
        assert go.wait(20)
        return [{} for _ in some]

    with (
        mock.patch.object(service, "predict", slow),
        client_module.TestClient(site.create_app(service, decoder, queue=1), LOCAL) as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(send, client, chest)
        assert begun.wait(20)
        refused = send(client, chest)
        go.set()
        assert first.result().status_code == 200
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert send(client, chest).status_code == 200


def test_a_slow_upload_is_ended():
    receiver = uploads.Receiver(seconds=0.05)

    async def wait():
        async def receive():
            await asyncio.sleep(10)

        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        scope = {"type": "http", "method": "POST", "headers": headers}
        await receiver.image(uploads.Request(scope, receive))

    with pytest.raises(uploads.Refusal, match="took longer") as refused:
        asyncio.run(wait())
    assert refused.value.status == 408


def test_uploads_that_wait_take_memory_from_others(monkeypatch):
    monkeypatch.setattr(uploads, "_TOGETHER", 1000)
    receiver = uploads.Receiver()

    async def text():
        async def receive():
            return {"type": "http.request", "body": bytes(500)}

        return await receiver.text(uploads.Request({"type": "http", "headers": []}, receive))

    with receiver.holding(bytes(600)), pytest.raises(uploads.Refusal, match="Too many uploads"):
        asyncio.run(text())
    assert len(asyncio.run(text())) == 500


def test_a_fault_of_the_program_is_logged_without_its_text(client, chest, service, caplog):
    name = "Jane"

    def fail(some):
        raise RuntimeError(f"{name} Doe")

    with mock.patch.object(service, "predict", fail):
        answer = send(client, chest)
    assert answer.status_code == 500
    assert "RuntimeError" in caplog.text
    assert "Jane" not in caplog.text + answer.text
    assert send(client, chest).status_code == 200


def test_nothing_is_stored_and_no_name_is_logged(client, chest, caplog, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    large = png(rng.integers(0, 65535, (1200, 1200), np.uint16))
    assert len(large) > 2 * 2**20
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = mock.Mock(side_effect=AssertionError)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", written)
    with caplog.at_level(logging.DEBUG):
        for name in ("../../Doe^Jane.png", "<img src=x onerror=alert(1)>.png", "C:\\a\\Doe.dcm"):
            answer = send(client, large, name=name)
            assert answer.status_code == 200
            assert "Doe" not in answer.text + caplog.text
    assert not [*tmp_path.iterdir()]
    assert not written.called
    assert "Doe" not in client.get("/metrics").text


def test_browsers_are_told_to_run_our_script_alone(client):
    for path in ("/", "/api/model", "/static/page.js", "/nothing"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
    page = client.get("/").text
    assert "Research software, not a medical device." in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def test_other_sites_and_other_names_are_refused(client, chest):
    assert send(client, chest, headers={"Origin": "http://evil.example"}).status_code == 403
    assert send(client, chest, headers={"Origin": "null"}).status_code == 403
    assert send(client, chest, headers={"Origin": "http://["}).status_code == 403
    assert send(client, chest, headers={"Origin": LOCAL}).status_code == 200
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"Host": "[::1]:8000"}).status_code == 200


def test_a_token_is_demanded_where_there_is_one(service, decoder, chest):
    app = site.create_app(service, decoder, token=TOKEN)
    with client_module.TestClient(app, "http://10.0.0.1:8000") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"charm_jax={TOKEN}"}):
            answer = send(client, chest, headers=headers)
            assert answer.status_code == 401
            assert "token" in answer.json()["error"]
        for path in ("/metrics", "/api/model", "/openapi.json", "/static/page.js"):
            assert client.get(path).status_code == 401
        assert client.get("/healthz").json() == {"status": "ok"}
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert send(client, chest, headers=bearer).status_code == 200
        assert client.get("/").url.path == "/login"
        assert client.post("/login", data={"token": "wrong"}).status_code == 401
        entered = client.post("/login", data={"token": TOKEN}, follow_redirects=False)
        assert entered.status_code == 303
        assert "HttpOnly" in entered.headers["set-cookie"]
        assert "SameSite=strict" in entered.headers["set-cookie"]
        assert TOKEN not in entered.headers["set-cookie"]
        cookie = f"another[1]=a b; {entered.headers['set-cookie'].partition(';')[0]}"
        assert client.get("/api/model", headers={"Cookie": cookie}).status_code == 200
        assert send(client, chest).status_code == 200


def test_the_document_describes_every_path_and_the_record(client, chest):
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    routes = {route.path for route in client.app.routes if hasattr(route, "methods")}
    assert {*document["paths"]} == routes - {"/", "/login", "/openapi.json"}

    def schema(path, method="post"):
        ok = document["paths"][path][method]["responses"]["200"]
        return ok["content"]["application/json"]["schema"]

    for path in ("/api/predict", "/api/explain"):
        record, wanted = send(client, chest, path).json(), schema(path)
        assert {*wanted["required"]} <= {*record}
        extra = {"novelty", "disagreement", "appearance"}
        extra |= {f"{name}_percentile" for name in extra}
        assert {*record} - extra <= {*wanted["properties"]}
    about = client.get("/api/model").json()
    assert {*schema("/api/model", "get")["required"]} <= {*about}


def test_prometheus_reads_the_counts(client, chest):
    parser = pytest.importorskip("prometheus_client.parser")
    send(client, chest)
    client.get("/no/such/path/of/Doe")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in parser.text_string_to_metric_families(answer.text)}
    counted = {
        (s.labels["path"], s.labels["status"]): s.value
        for s in families["charm_jax_requests"].samples
        if s.name.endswith("_total")
    }
    assert counted["/api/predict", "200"] >= 1
    assert counted["other", "404"] >= 1
    assert "Doe" not in answer.text
    assert {"charm_jax_batch_images", "charm_jax_queue", "charm_jax_request_seconds"} <= {*families}
