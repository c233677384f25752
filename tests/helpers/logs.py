"""What tclip itself has logged: libraries have messages of their own, at any time."""

import pytest


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("tclip")]
