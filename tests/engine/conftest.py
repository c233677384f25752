import pytest

from tclip import engine


def pytest_collection_modifyitems(items):
    if reason := engine.unavailable():
        for item in items:
            if "tests/engine/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=reason))
