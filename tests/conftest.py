"""What every test may lean on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds ``blood-cells/`` and ``pbc/``; the test is skipped without it."""
    folder = Path(os.environ.get("LEUKO_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "blood-cells").is_dir():
        pytest.skip(f"the real images are not at {folder} (set LEUKO_TEST_DATA)")
    return folder
