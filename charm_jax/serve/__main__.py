"""Serve a trained run as a web page and an HTTP interface.

usage: charm-jax serve [RUN] [options]

    charm-jax serve demo
    charm-jax serve shared/demo --port 8080

RUN is the name or folder of a run, or of a portable model; by default the newest run. Only this
computer reaches the server unless --host says otherwise; then clients need a token, which the
environment variable CHARM_JAX_TOKEN gives or the server draws and prints. Nothing is stored.
exit codes: 2 bad input; 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

import os
import re
import secrets
from typing import TYPE_CHECKING

from charm_jax.config import cli
from charm_jax.config.cli import Option, say
from charm_jax.inference import loaded
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs.arguments import CHECKPOINT, MEMORY, find_run
from data_pipelines.errors import InputError

if TYPE_CHECKING:
    from charm_jax.serve.service import Service

_OPTIONS = {
    "host": Option("127.0.0.1", "address that the server listens at"),
    "port": Option("8000", "port that the server listens at; 0 takes a free one"),
    "queue": Option("64", "images that are decoded, wait or run; further ones get 429"),
    **CHECKPOINT,
    **MEMORY,
}
_TOKEN, _SHORTEST = "CHARM_JAX_TOKEN", 16  # characters


def main(argv: list[str]) -> int:
    """Serve a run until a signal stops it.

    Raises:
        InputError: there is no such run, checkpoint or memory, an option is not valid, or the
            packages of the extra ``web`` are not installed.
    """
    command = cli.Command(__doc__, _OPTIONS, ("data.dir", "data.csv", "runs_dir"), words=True)
    arguments = cli.parse(command, argv)
    values = arguments.flags
    if len(arguments.words) > 1:
        raise InputError(f"{len(arguments.words)} runs are named: name one.")
    port, queue = _number("port", values.port, 0, 65535), _number("queue", values.queue, 1, 10_000)
    try:
        from charm_jax.serve import guard, server
        from charm_jax.serve.service import Service
    except ModuleNotFoundError as error:
        raise InputError(
            f'The package {error.name} is not installed: pip install "charm-jax[web]".'
        ) from None
    token = _token(is_local=values.host in guard.LOCAL)
    run = find_run(arguments, arguments.words[0] if arguments.words else "")
    service = Service(loaded.load_run(run, values.checkpoint, values.memory))
    say("Compiling ...")
    service.warm_up()
    with server.listening(values.host, port) as socket:
        _announce(service, server.address(socket), token)
        server.serve(service, socket, queue=queue, token=token)
    return 0


def _announce(service: "Service", address: str, token: str | None) -> None:
    model = service.model
    simulated = ", trained on SIMULATED images" if model.trained["simulated"] else ""
    say(f"Serving {model.description}{simulated} at {address}/. {DISCLAIMER}")
    if token is not None and _TOKEN not in os.environ:
        say(f"The token is {token}")


def _token(*, is_local: bool) -> str | None:
    """Return what clients have to send; None where only this computer reaches the server."""
    given = os.environ.get(_TOKEN)
    if given is not None and not re.fullmatch(rf"[!-~]{{{_SHORTEST},}}", given):
        raise InputError(
            f"{_TOKEN} has {len(given)} characters: give at least {_SHORTEST}, in ASCII and "
            "without blanks."
        )
    return given if given or is_local else secrets.token_urlsafe(32)


def _number(name: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
        raise InputError(f"--{name} is {text!r}: give a whole number from {low} to {high:,}.")
    return int(text)


if __name__ == "__main__":
    cli.run(main)
