"""The graphics processor that networks can be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from leuko.errors import SettingsError, TrainingError


def check_gpu() -> None:
    """Refuses a machine without one.

    Raises:
        SettingsError: PyTorch finds none that it can use.
    """
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            f"device is 'cuda', but PyTorch {torch.__version__} finds no GPU here that it can "
            "use; expected one of NVIDIA with its driver, or of AMD with PyTorch's build for ROCm. "
            "To compute on the processor leave --device out."
        )


@contextmanager
def explain_full_memory(what: str) -> Iterator[None]:
    """Says what to do where the memory of a GPU is too small.

    Args:
        what: Is being trained, in words.

    Raises:
        TrainingError: PyTorch found no memory on the GPU.
    """
    import torch

    try:
        yield
    except RuntimeError as error:
        # A GPU that is full before PyTorch has begun on it gives a fault of another kind.
        full = isinstance(error, torch.OutOfMemoryError)
        if not full and not ("out of memory" in str(error) and "error:" in str(error)):
            raise
        raise TrainingError(
            f"The memory of the GPU is full while {what} is trained: {str(error).splitlines()[0]} "
            "What a run had finished is kept: continue with --resume and with --workers 1, so that "
            "one network at a time is there. If that isn't enough, end what else uses the GPU, or "
            "start a new run with a smaller --batch."
        ) from None


def describe_gpu() -> str:
    """Its name, and what PyTorch was built for."""
    import torch

    build = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{torch.cuda.get_device_name()}, {build}"
