"""What every test may lean on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Where Python is told to write no bytecode, as in many containers, each of the many processes that
# the tests start would compile PyTorch's sources again: a small study takes twice as long.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# Modules with the longest work come first, so that at the end no worker is left alone with one.
LONGEST = (
    "test_docs", "test_study", "test_page", "test_cli", "test_fit", "test_training",
    "test_adaptation", "test_bundle", "test_laboratories", "test_pretraining", "test_inspection",
    "test_audit", "test_service_guard", "test_review", "test_service", "test_evaluation",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the modules into the order in which the workers are given them."""

    def rank(item: pytest.Item) -> int:
        return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds ``blood-cells/`` and ``pbc/``; the test is skipped without it."""
    folder = Path(os.environ.get("LEUKO_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "blood-cells").is_dir():
        pytest.skip(f"the real images are not at {folder} (set LEUKO_TEST_DATA)")
    return folder
