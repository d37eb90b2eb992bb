import pytest
from running import command, train

from charm_jax.config.cli import guarded


@pytest.fixture(scope="session")
def _compile_once(tmp_path_factory):
    """All runs share their compiled steps."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("xla")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory, _compile_once):
    """A folder with the run `demo`, trained and evaluated."""
    folder = tmp_path_factory.mktemp("finished")
    trained = train(cwd=folder)
    assert trained.returncode == 0, trained.stderr
    evaluated = command("eval", cwd=folder)
    assert evaluated.returncode == 0, evaluated.stderr
    return folder, trained, evaluated


@pytest.fixture
def refused(capfd, monkeypatch):
    """Asserts that a command leaves with code 2 and one sentence that has all the words."""

    def check(main, arguments, *words, cwd):
        monkeypatch.chdir(cwd)
        assert guarded(main, arguments) == 2
        message = capfd.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("error: ")
        for word in words:
            assert word in message, message

    return check
