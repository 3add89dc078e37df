"""Programs that a machine may lack: what is not checked then is said aloud."""

import shutil

import pytest


def program(name: str, unchecked: str, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Where a program is; when it is nowhere, `unchecked` is said on the terminal."""
    found = shutil.which(name)
    if found is None:
        with capsys.disabled():
            print(f"\nSKIPPED {unchecked}: no {name} on this machine")
    return found
