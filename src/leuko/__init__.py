"""Leuko classifies white blood cells in blood-smear images, and says how far to trust it.

    images → manifest → groups → cleaning → splits → cells → fit → judge → report

    data/       what the images are: decoding, reading sets, finding leukocytes, cleaning, splits
    learning/   what a model learns: networks, batches, the training loop, one fold as a job
    judgement/  whether to believe it: metrics, intervals, comparison, figures, report
    inspection  what is wrong with a set: the audit, wrong labels, the leak meter
    use/        what people do with a model, without PyTorch: predicting, the differential
    study       models × folds × repeats into one run folder
    pretraining a start for other studies, from one large set
    evaluation  how far a model can be trusted on a labelled set
    training    one model for use, as a bundle
    microscope  a bundle fitted to a new microscope, from a few labelled cells
    engine      jobs in processes of one thread each
    run         the run folder: made once, never overwritten, continued only by the same settings
    cli         thin commands

Names below are loaded when first used; ``import leuko`` itself loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leuko.data.cleaning import clean as clean
    from leuko.data.downloads import fetch as fetch
    from leuko.data.image import read_image as read_image
    from leuko.data.leukocytes import find_leukocytes as find_leukocytes
    from leuko.data.sources import scan as scan
    from leuko.evaluation import evaluate as evaluate
    from leuko.inspection import audit as audit
    from leuko.microscope import adapt as adapt
    from leuko.pretraining import pretrain as pretrain
    from leuko.study import compare as compare
    from leuko.training import train as train
    from leuko.use.predictor import load as load
    from leuko.use.slides import differential as differential

__version__ = "0.1.0"

_HOMES = {
    "adapt": "leuko.microscope",
    "audit": "leuko.inspection",
    "clean": "leuko.data.cleaning",
    "compare": "leuko.study",
    "differential": "leuko.use.slides",
    "evaluate": "leuko.evaluation",
    "fetch": "leuko.data.downloads",
    "find_leukocytes": "leuko.data.leukocytes",
    "load": "leuko.use.predictor",
    "pretrain": "leuko.pretraining",
    "read_image": "leuko.data.image",
    "scan": "leuko.data.sources",
    "train": "leuko.training",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leuko' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
