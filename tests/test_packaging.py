"""What is installed from a wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ssl_hub

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # A build leaves its files beside the source, and the next one would pack what has been deleted since.
    copy = folder / "copy"
    shutil.copytree(REPOSITORY / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (file,) = folder.glob("*.whl")
    assert file.name == f"ssl_hub-{ssl_hub.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_it_has_every_file_of_the_package(wheel):
    source = REPOSITORY / "src"
    files = {path.relative_to(source) for path in (source / "ssl_hub").rglob("*.*") if path.suffix != ".pyc"}
    assert files == {path.relative_to(wheel) for path in (wheel / "ssl_hub").rglob("*.*")}


def test_its_command(wheel, tmp_path):
    (metadata,) = wheel.glob("*.dist-info")
    assert "ssl-hub = ssl_hub.commands:main" in (metadata / "entry_points.txt").read_text()
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import ssl_hub.commands as c; print(c.__file__); c.main()"
    command = [sys.executable, "-c", code, "recipes", "simclr-digits"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(wheel)) and "  simclr-digits  " in result.stdout
