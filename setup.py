"""What pyproject.toml cannot say: which files beside the modules an installed copy needs."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithFiles(build_py):
    """Puts the files that notebooks read into ``helpers/shipped``, where ``files.find`` looks."""

    def run(self) -> None:
        """Builds the modules; an editable install reads the checkout's own files."""
        super().run()
        if not self.editable_mode:
            for name in ("leaderboard", "notebooks", "profiles", "results"):
                target = Path(self.build_lib) / "helpers" / "shipped" / name
                shutil.copytree(name, target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithFiles})
