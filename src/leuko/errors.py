"""Everything that can go wrong and be put right by the person who asked.

Each message says what was found, what was expected and what to do next. The command line
prints the message alone; a traceback appears only with ``--debug``.

    LeukoError                      exit code 1
    ├── UsageError                  exit code 2: asked in a way that can't be answered
    │   ├── UnknownNameError        a model, recipe, set or setting of that name doesn't exist
    │   ├── SettingsError           a setting has a value that it can't have
    │   ├── InputSizeError          images too small for a network
    │   ├── OutputError             the output folder exists or can't be written
    │   └── ResumeError             --resume with other settings, data or software
    ├── DataError                   the data can't be used as they are
    │   ├── NoImagesError           nothing to read where images were expected
    │   ├── ImageError              one image that can't be read; .reason is a short code
    │   ├── LabelTableError         the CSV with the labels
    │   ├── AnnotationError         a file of boxes
    │   ├── RecipeError             a cleaning recipe
    │   └── AdaptationError         labelled cells from which a bundle can't learn
    ├── SplitError
    │   ├── SplitLeakError          one group on both sides of a split
    │   ├── SeenImagesError         tested on what the start of the weights was trained on
    │   └── TooFewGroupsError       fewer groups of a class than folds
    ├── ShapeError                  arrays that don't fit each other
    ├── TrainingError
    │   ├── NonFiniteLossError      the loss became NaN or infinite
    │   └── WeightsError            a file of weights that can't be used
    ├── BundleError                 a trained model whose parts don't belong together
    ├── StorageError                no space left, read-only, a write that failed
    ├── StoreError                  the store of slides can't be opened, asked or written
    ├── DownloadError               no network, or the server refused
    └── MissingExtraError           a library of an optional extra isn't installed
"""

from __future__ import annotations


class LeukoError(Exception):
    """Root of the tree; catch this to catch every fault that Leuko knows."""

    exit_code: int = 1


class UsageError(LeukoError):
    """Asked in a way that can't be answered."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that doesn't exist; the message suggests the nearest one."""


class SettingsError(UsageError):
    """A setting has a value that it can't have."""


class InputSizeError(UsageError):
    """Images are smaller than the smallest that a network accepts."""


class OutputError(UsageError):
    """The output folder exists already or isn't a folder that can be written."""


class ResumeError(UsageError):
    """A run can't be continued with these settings; the message names each difference."""


class DataError(LeukoError):
    """The data can't be used as they are."""


class NoImagesError(DataError):
    """Nothing to read where images were expected."""


class ImageError(DataError):
    """One image can't be read.

    Attributes:
        reason: A short code that doesn't change between versions, such as ``truncated``.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class LabelTableError(DataError):
    """The table of labels can't be read or says something impossible."""


class AnnotationError(DataError):
    """A file of boxes can't be read."""


class RecipeError(DataError):
    """A cleaning recipe can't be read, or a step can't be applied."""


class AdaptationError(DataError):
    """The labelled cells are too few, or of classes that the bundle doesn't have."""


class SplitError(LeukoError):
    """The data can't be split as asked."""


class SplitLeakError(SplitError):
    """Images of one group are on both sides of a split."""


class SeenImagesError(SplitError):
    """Images to be tested on are among those that the start of the weights was trained on."""


class TooFewGroupsError(SplitError):
    """A class has fewer groups than there are folds."""


class ShapeError(LeukoError, ValueError):
    """Arrays don't fit each other, or values lie outside their range."""


class TrainingError(LeukoError):
    """Training stopped because going on would be meaningless."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite; the message names epoch, step and cause."""


class WeightsError(TrainingError):
    """A file of weights can't be used."""


class BundleError(LeukoError):
    """A bundle can't be read, or isn't what was written: nothing it says may be believed."""


class ConversionError(LeukoError):
    """A network in another form would lose too much."""


class StorageError(LeukoError):
    """Something couldn't be written: no space left, read-only, a limit."""


class StoreError(LeukoError):
    """The store of slides can't be opened, asked or written."""


class DownloadError(LeukoError):
    """Something couldn't be downloaded; the message says how to get it by hand."""


class MissingExtraError(LeukoError):
    """A library of an optional extra isn't installed; the message names the extra."""


def suggest(name: str, known: list[str]) -> str:
    """Ends an error message about an unknown name: the nearest known one, or all of them."""
    import difflib

    nearest = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    by_lower = {k.lower(): k for k in known}
    if nearest:
        return f"Did you mean {by_lower[nearest[0]]!r}?"
    return "Known: " + ", ".join(known) + "."
