"""The server as a process, its options, and its sockets."""

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from unittest.mock import Mock

import pytest

from charm_jax.serve import __main__ as serve
from data_pipelines.errors import InputError

app = pytest.importorskip("charm_jax.serve.app")
server = pytest.importorskip("charm_jax.serve.server")


def ask(address, path="/healthz"):
    # Proxies of the environment are left out.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        address + path
    ) as answer:
        return answer.read()


def test_what_cannot_be_served_is_refused(finished, refused, monkeypatch):
    def check(arguments, *words):
        refused(serve.main, arguments, *words, cwd=finished[0])

    check(["demo", "demo"], "2 runs are named")
    check(["nothing"], "nothing")
    check(["--port", "70000"], "--port is '70000'", "from 0 to 65,535")
    check(["--port", "x"], "--port is 'x'")
    check(["--queue", "0"], "--queue is '0'")
    monkeypatch.setenv("CHARM_JAX_TOKEN", "short")
    check([], "CHARM_JAX_TOKEN has 5 characters")
    monkeypatch.setenv("CHARM_JAX_TOKEN", "t" * 20 + " ")  # a header arrives without it
    check([], "in ASCII and without blanks")


def test_a_token_is_drawn_where_others_reach_the_server(monkeypatch):
    monkeypatch.delenv("CHARM_JAX_TOKEN", raising=False)
    assert serve._token(is_local=True) is None
    assert len(serve._token(is_local=False)) > 30
    assert serve._token(is_local=False) != serve._token(is_local=False)
    monkeypatch.setenv("CHARM_JAX_TOKEN", "t" * 20)
    assert {serve._token(is_local=True), serve._token(is_local=False)} == {"t" * 20}


def test_an_address_in_use_is_refused():
    with server.listening("127.0.0.1", 0) as used:
        with pytest.raises(InputError, match="choose another"):
            server.listening("127.0.0.1", used.getsockname()[1]).__enter__()
        assert used.proto == socket.IPPROTO_TCP  # otherwise answers wait for acknowledgements
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.address(used))
    with pytest.raises(InputError, match="cannot listen at no such host"):
        server.listening("no such host", 80).__enter__()


def test_clients_that_send_half_a_request_are_left(service, decoder, monkeypatch):
    monkeypatch.setattr(server, "_IDLE_SECONDS", 2)
    made = server.server_of(app.create_app(service, decoder))
    with server.listening("127.0.0.1", 0) as opened, contextlib.ExitStack() as stack:
        thread = threading.Thread(target=made.run, args=([opened],))
        thread.start()
        try:
            address = server.address(opened)
            clients = [
                stack.enter_context(socket.create_connection(opened.getsockname()))
                for _ in range(20)
            ]
            for client in clients:
                client.settimeout(60)
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            assert ask(address) == b'{"status":"ok"}'
            for client in clients:
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(100) == b""
            assert ask(address) == b'{"status":"ok"}'
        finally:
            made.should_exit = True
            thread.join()


def test_a_client_that_still_receives_is_waited_for(monkeypatch):
    calls, sizes = [], [500, 200, 200]
    loop = Mock(call_later=lambda _, function, *given: calls.append((function, given)))
    transport = Mock(get_write_buffer_size=lambda: sizes.pop(0))
    protocol = Mock(spec=server._Impatient, loop=loop, transport=transport, cycle=None)
    protocol._give_up = functools.partial(server._Impatient._give_up, protocol)
    protocol._give_up(None)
    while calls:
        assert not transport.abort.called
        function, given = calls.pop()
        function(*given)
    assert transport.abort.called
    assert sizes == []


@pytest.mark.daily
def test_the_command_serves_until_a_signal_stops_it(finished):
    with subprocess.Popen(
        [sys.executable, "-m", "charm_jax.serve", "demo", "--port", "0"],
        cwd=finished[0],
        env=os.environ | {"CHARM_JAX_TOKEN": "t" * 20},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if found := re.search(r"at (http://127\.0\.0\.1:\d+)/", line):
                break
        assert "SIMULATED" in line
        assert ask(found[1]) == b'{"status":"ok"}'
        with pytest.raises(urllib.request.HTTPError, match="401"):
            ask(found[1], "/metrics")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr.read().strip() == (
            "stopped by SIGTERM: start the same command again."
        )
