"""The graphics processor that networks can be trained on."""

from __future__ import annotations

from leuko.errors import SettingsError


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


def describe_gpu() -> str:
    """Its name, and what PyTorch was built for."""
    import torch

    build = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{torch.cuda.get_device_name()}, {build}"
