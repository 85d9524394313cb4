"""The graphics processor that networks can be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from leuko.errors import SettingsError, TrainingError


def check_gpu(*, begun: bool = False) -> None:
    """Refuses a machine without one.

    Args:
        begun: Whether a run that was begun on one is to go on.

    Raises:
        SettingsError: PyTorch finds none that it can use.
    """
    import torch

    if torch.cuda.is_available():
        return
    what, then = "device is 'cuda'", "To compute on the processor leave --device out."
    if begun:  # where the device can't be left out, as it is that of the run
        what = "The run was begun with --device cuda"
        then = (
            "Continue it on a machine that has one, or start a new run without --device to compute "
            "on the processor."
        )
    raise SettingsError(
        f"{what}, but PyTorch {torch.__version__} finds no GPU here that it can use; expected one "
        f"of NVIDIA with its driver, or of AMD with PyTorch's build for ROCm. {then}"
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


def use_whole_float32() -> None:
    """Has a GPU compute float32 as such, for the whole process.

    Left to itself PyTorch lets convolutions round their factors to TF32, which has the 10 bits of
    half precision: what is asked for as float32 would then be none.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def describe_gpu() -> str:
    """Its name, what PyTorch was built for, and what `use_whole_float32` does."""
    import torch

    build = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{torch.cuda.get_device_name()}, {build}, float32 without TF32"
