"""The build backend: scikit-build-core, and the C compiler of PyPI where there is no other."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from scikit_build_core import build as core
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

ZIG = "ziglang>=0.14"
# Of the machines that ziglang has wheels for, those that the engine has kernels for.
ZIG_MACHINES = ("x86_64", "amd64", "aarch64", "arm64")
Settings = Mapping[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What pip installs before it builds a wheel."""
    return [*core.get_requires_for_build_wheel(config_settings), *_compiler()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """What pip installs before it builds an editable install."""
    return [*core.get_requires_for_build_editable(config_settings), *_compiler()]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Builds a wheel; returns its name."""
    _choose_compiler()
    return core.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Builds the wheel of an editable install; returns its name."""
    _choose_compiler()
    return core.build_editable(wheel_directory, config_settings, metadata_directory)


def _has_compiler() -> bool:
    return "CC" in os.environ or any(map(shutil.which, ("cc", "gcc", "clang")))


def _compiler() -> list[str]:
    return [] if _has_compiler() or platform.machine().lower() not in ZIG_MACHINES else [ZIG]


def _choose_compiler() -> None:
    if not _has_compiler() and importlib.util.find_spec("ziglang"):
        os.environ["CC"] = f"{sys.executable} -m ziglang cc"
