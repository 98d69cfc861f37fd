"""What deploy/setup.sh decides, in a small project of its own whose pip and Python only say what they were asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import ROOT

#: Each line of `calls` is one call. A file `pip-says` is what the first installation of the project fails with.
PIP = """#!/bin/sh
echo "pip $*" >> calls
case "$*" in
  *--editable*) if [ -f pip-says ]; then cat pip-says >&2; rm pip-says; exit 1; fi ;;
  uninstall*) rm -f python-says ;;
esac
"""
#: A file `python-says` is what importing a model fails with.
PYTHON = """#!/bin/sh
if [ -f python-says ]; then cat python-says >&2; exit 1; fi
"""
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


class Project:
    """A folder with what setup.sh reads and runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "deploy").mkdir()
        shutil.copy(ROOT / "deploy" / "setup.sh", folder / "deploy")
        (folder / "pyproject.toml").write_text("[project]\n")
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name, text in (("pip", PIP), ("python", PYTHON)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)

    def set_up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it, and give what it said."""
        (self.folder / "calls").write_text("")
        command = ["/bin/bash", "deploy/setup.sh"]
        whole = {**os.environ, **environment}
        return subprocess.run(
            command, cwd=self.folder, env=whole, capture_output=True, text=True, check=False, timeout=120
        )

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    @property
    def installations(self) -> list[str]:
        return [call for call in self.calls if "--editable" in call]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_second_run_does_nothing_until_the_project_changes(project: Project) -> None:
    assert project.set_up().returncode == 0
    assert len(project.installations) == 1
    assert project.set_up().returncode == 0
    assert project.calls == []
    (project.folder / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert project.set_up().returncode == 0
    assert len(project.installations) == 1


def test_pytorchs_index_is_not_used_where_the_configured_one_suffices(project: Project) -> None:
    assert project.set_up().returncode == 0
    assert not any(TORCH_INDEX in call for call in project.calls)


def test_pytorchs_index_is_added_where_the_configured_one_lacks_torch(project: Project) -> None:
    (project.folder / "pip-says").write_text("ERROR: No matching distribution found for torch==2.13.0+cpu\n")
    done = project.set_up()
    assert done.returncode == 0
    assert [TORCH_INDEX in call for call in project.installations] == [False, True]
    assert "PyTorch's own index" in done.stdout


def test_any_other_failure_is_shown_and_not_repeated(project: Project) -> None:
    (project.folder / "pip-says").write_text("ERROR: Failed building wheel for llama-cpp-python\n")
    done = project.set_up()
    assert done.returncode == 1
    assert len(project.installations) == 1
    assert "Failed building wheel" in done.stderr
    assert not (project.folder / ".venv" / ".set-up").exists()


def test_a_torchvision_that_does_not_fit_is_removed_and_said(project: Project) -> None:
    (project.folder / "python-says").write_text("RuntimeError: operator torchvision::nms does not exist\n")
    done = project.set_up()
    assert done.returncode == 0
    assert "pip uninstall --quiet --yes torchvision torchaudio torchcodec" in project.calls
    assert "removing all three" in done.stdout


def test_any_other_trouble_with_importing_a_model_stops_it(project: Project) -> None:
    (project.folder / "python-says").write_text("ImportError: no libgomp\n")
    done = project.set_up()
    assert done.returncode == 1
    assert "no libgomp" in done.stderr
    assert not any("uninstall" in call for call in project.calls)


def test_without_a_compiler_it_says_what_to_install(project: Project, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("cat", "cut", "dirname", "sha256sum"):
        (programs / name).symlink_to(shutil.which(name) or name)
    done = project.set_up(PATH=str(programs))
    assert done.returncode == 1
    assert "build-essential" in done.stderr
    assert project.calls == []
