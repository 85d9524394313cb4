"""Public sets that can be fetched by name."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from leuko.errors import DownloadError, MissingExtraError, UnknownNameError, suggest

_DOWNLOADS = {"blood-cells": "paultimothymooney/blood-cells"}


def fetch(name: str) -> Path:
    """Downloads a public set with kagglehub.

    Args:
        name: ``blood-cells``.

    Returns:
        The folder, to be given to `leuko.data.sources.scan`.

    Raises:
        UnknownNameError: Another name.
        MissingExtraError: The extra ``leuko[fetch]`` isn't installed.
        DownloadError: No network, or the server refused.
    """
    if name not in _DOWNLOADS:
        raise UnknownNameError(
            f"no set named {name!r} can be fetched. {suggest(name, list(_DOWNLOADS))}"
        )
    handle = _DOWNLOADS[name]
    by_hand = (
        f"By hand: download https://www.kaggle.com/datasets/{handle} in a browser, unpack the "
        f"archive into a folder {name}/, then run: leuko compare {name}/"
    )
    try:
        import kagglehub
    except ImportError:
        raise MissingExtraError(
            'fetching needs kagglehub, which isn\'t installed. Run: pip install "leuko[fetch]". '
            + by_hand
        ) from None
    try:
        # kagglehub prints to stdout, which belongs to what programs read.
        with contextlib.redirect_stdout(sys.stderr):
            return Path(kagglehub.dataset_download(handle))
    except Exception as error:  # kagglehub passes on whatever requests, urllib3 or Kaggle raise
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise DownloadError(
            f"{name} couldn't be downloaded ({type(error).__name__}: {cause}); expected an "
            f"answer from kaggle.com. Check the network. {by_hand}"
        ) from None
