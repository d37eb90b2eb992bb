"""Portable models on the hub, against a stand-in of its interface on loopback and its cache."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import charm_jax
from charm_jax.export import push
from charm_jax.runs import hub, portable
from data_pipelines.errors import InputError

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "a" * 40


class StandIn(BaseHTTPRequestHandler):
    """Accept a repository and a commit, and keep what they hold."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        answer = {}
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            answer = {"url": f"{self.server.url}/owner/name"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {
                "files": [
                    {**file, "uploadMode": "regular", "shouldIgnore": False} for file in files
                ]
            }
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            answer = {"success": True, "commitOid": COMMIT}
            answer |= {"commitUrl": f"{self.server.url}/owner/name/commit/{COMMIT}"}
        self._answer(answer)

    def do_GET(self):
        self._answer({"id": "owner/name", "sha": COMMIT, "siblings": []})

    def _answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    made = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    made.url, made.files, made.paths = f"http://127.0.0.1:{made.server_port}", {}, []
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    (made / "eval/other").mkdir(parents=True)
    for name in (portable.FILE, "config.json", "README.md", "eval/other/predictions.csv"):
        (made / name).write_text(f"---\nof: {name}\n---\n")
    return made


def test_a_folder_is_sent_without_evaluations_of_other_data(server, folder, capfd):
    assert push.main([str(folder), "owner/name"]) == 0
    assert {*server.files} == {portable.FILE, "config.json", "README.md"}
    assert server.files["config.json"] == (folder / "config.json").read_bytes()
    assert server.created["name"] == "name"
    assert server.created.get("private", server.created.get("visibility")) in (True, "private")
    assert "charm_jax.load('hf://owner/name')" in capfd.readouterr().err


def test_what_is_no_model_is_not_sent(refused, folder, tmp_path):
    refused(push.main, ["model"], "Name a folder and a repository", cwd=tmp_path)
    (folder / portable.FILE).unlink()
    refused(push.main, ["model", "owner/name"], "model is no portable model", cwd=tmp_path)


def test_a_hub_out_of_reach_is_said_in_a_sentence(refused, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(push.main, [str(folder), "owner/name"], "cannot be sent", "HF_TOKEN", cwd=folder)
    refused(push.main, [str(folder), "no name"], "cannot be sent", cwd=folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache with a snapshot, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "cache/models--owner--name"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text(COMMIT)
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.mark.parametrize("name", ["hf://owner/name", f"hf://owner/name@{COMMIT}"])
def test_a_model_is_loaded_from_the_cache_by_its_name(cache, name):
    (cache / portable.FILE).write_text("")
    (cache / "config.json").write_text("{}")
    assert hub.fetch(name) == cache
    with pytest.raises(InputError, match=f"{cache}/config.json is damaged .it lacks format"):
        charm_jax.load(name)


def test_what_the_hub_does_not_have_is_said_in_a_sentence(cache):
    with pytest.raises(InputError, match=r"hf://owner/name has no model\.safetensors"):
        hub.fetch("hf://owner/name")
    with pytest.raises(InputError, match=r"hf://owner/other cannot be fetched \("):
        hub.fetch("hf://owner/other")
