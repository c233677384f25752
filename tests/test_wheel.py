"""What pip installs: built, checked, and tried in an environment and a folder of its own."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tclip.demo import PICTURES
from tclip.run.recipe import recipe_names

ROOT = Path(__file__).parents[1]
TRAINING = ("optax", "orbax", "grain", "tensorflow-datasets", "ml_collections", "matplotlib")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("build") is None or importlib.util.find_spec("twine") is None,
        reason="build and twine (extra `test`) are not installed",
    ),
]


def run(*command, **options):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("*.whl"))


def test_sdist_and_wheel_are_well_formed(wheel):
    files = sorted(wheel.parent.iterdir())
    assert len(files) == 2
    run(sys.executable, "-m", "twine", "check", "--strict", *files)


def test_the_wheel_holds_recipes_types_and_the_demo(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        required = [
            line
            for line in archive.read(metadata).decode().splitlines()
            if line.startswith("Requires-Dist:") and "extra ==" not in line
        ]
    assert "tclip/py.typed" in names
    assert "tclip/demo/model/model.safetensors" in names
    assert {f"tclip/recipes/{name}.py" for name in recipe_names()} <= names
    assert not any(name.startswith(("tests/", "launch/", "configs/")) for name in names)
    assert required
    assert not any(name in line for line in required for name in TRAINING)


def test_it_runs_from_any_folder(wheel, tmp_path):
    """Requirements are those of this environment: a link to its packages, without tclip."""
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin/python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    pip = "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"
    run(sys.executable, *pip, wheel)
    Path(site, "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (tmp_path / "here").mkdir()
    options = {
        "cwd": tmp_path / "here",
        "env": {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")},
    }
    tclip = environment / "bin/tclip"
    where = run(python, "-c", "import tclip; print(tclip.__file__)", **options)
    assert Path(where.strip()).is_relative_to(site)
    assert run(tclip, "--version", **options).startswith("tclip 0.")
    assert "airplane" in run(tclip, "classify", PICTURES[0], **options)
    code = "from tclip.run.recipe import recipe_path; print(recipe_path('shapes:student'))"
    path = run(python, "-c", code, **options).strip()
    assert path == f"{site}/tclip/recipes/shapes.py:student"
