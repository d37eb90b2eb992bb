"""Ship configs/ inside charm_jax: a top-level package of that name would be in others' way."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_CONFIGS = Path("configs")


class BuildWithConfigs(build_py):
    """Copy the configs into the built package; an editable install reads them where they are."""

    def run(self) -> None:
        """Build the packages, then copy."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "charm_jax", "configs")
            no_bytecode = shutil.ignore_patterns("__pycache__")
            shutil.copytree(_CONFIGS, target, ignore=no_bytecode, dirs_exist_ok=True)

    def get_source_files(self) -> list[str]:
        """Return what the source distribution needs."""
        configs = map(str, _CONFIGS.rglob("*.py"))
        return [*super().get_source_files(), *configs, "requirements.txt"]


setup(cmdclass={"build_py": BuildWithConfigs})
