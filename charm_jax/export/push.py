"""Send a portable model to the Hugging Face hub.

usage: charm-jax push FOLDER OWNER/NAME [--public]

    charm-jax push shared/demo owner/name

FOLDER is what charm-jax export --format portable wrote. A new repository is private unless --public
is given. The token is that of HF_TOKEN or of `hf auth login`. exit codes: 0 done; 2 bad input.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from data_pipelines import stopping

    stopping.exit_at_once()

from pathlib import Path

from charm_jax.config import cli
from charm_jax.config.cli import Option, say
from charm_jax.runs import hub, portable
from data_pipelines.errors import InputError

_OPTIONS = {"public": Option(False, "let everybody read a new repository")}


def main(argv: list[str]) -> int:
    """Send a folder and return the exit code.

    Raises:
        InputError: it is no portable model, or the hub refuses it or is out of reach.
    """
    command = cli.Command(__doc__, _OPTIONS, ("runs_dir",), words=True)
    arguments = cli.parse(command, argv)
    if len(arguments.words) != 2:
        raise InputError(
            "Name a folder and a repository, for example charm-jax push shared/demo owner/name."
        )
    folder, repository = Path(arguments.words[0]), arguments.words[1]
    if not portable.is_portable(folder):
        raise InputError(
            f"{folder} is no portable model: write one with charm-jax export --format portable."
        )
    address = hub.push(folder, repository, public=arguments.flags.public)
    say(f"Sent {folder} to {address}; charm_jax.load({hub.PREFIX + repository!r}) loads it.")
    return 0


if __name__ == "__main__":
    cli.run(main)
