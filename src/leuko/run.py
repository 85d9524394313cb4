"""The folder of one run: made once, never overwritten, continued only by the same settings."""

from __future__ import annotations

import json
import os
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leuko.errors import OutputError, ResumeError
from leuko.storage import explain_storage_faults, write_atomically

# What must be the same for a continued run to give what the uninterrupted one would have given.
PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "polars",
    "pillow", "simplejpeg", "matplotlib",
)  # fmt: skip
PINNED = ("leuko", "python", *PACKAGES, "processor", "threads", "gpu", "init_sha256")
# Checkpoints of the jobs at work are the largest thing by far: some 180 MB for ResNet-18.
FREE_SPACE = 500_000_000


def check_run_folder(out: str | Path | None) -> None:
    """Refuses an output folder early, before any work; makes nothing.

    Raises:
        OutputError: The folder exists and isn't empty, or can't be written.
    """
    path = Path("runs") if out is None else Path(out)
    try:
        if out is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            what = "exists and is not empty" if path.is_dir() else "is not a folder"
            advice = "delete it if it isn't needed"
            if (path / "config.toml").is_file():  # written last, as it marks the rest as complete
                advice = f"continue an interrupted run with --resume {path}"
            raise OutputError(
                f"{path} {what}; a run never overwrites anything. Choose another --out, or "
                f"{advice}."
            )
        parent = path.absolute()
        while not parent.exists():
            parent = parent.parent
    except OSError as error:
        raise _unwritable(path, error) from error
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise _unwritable(path, OSError(0, f"{parent} is not a folder that can be written"))


def make_run_folder(out: str | Path | None, name: str) -> Path:
    """Makes the folder of a new run.

    Args:
        out: The folder wanted; None takes the next free ``runs/NAME-1``, ``-2`` … of the
            current folder.
        name: Of the data.

    Raises:
        OutputError: The folder exists and isn't empty, or can't be made.
    """
    check_run_folder(out)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "run"
    number = 1
    while True:
        path = Path("runs") / f"{stem}-{number}" if out is None else Path(out)
        try:
            path.mkdir(parents=True, exist_ok=out is not None)
            probe = path / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _unwritable(path, error) from error
        else:
            return path


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} can't be written ({error.strerror or error}). Choose another folder with --out."
    )


def remove_leftovers(path: Path) -> None:
    """Deletes the half-written files of a process that was killed."""
    for leftover in path.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Holds the run folder for this process alone.

    Raises:
        ResumeError: Another process works in it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there the folder isn't guarded.
        yield
        return
    with explain_storage_faults(path):
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ResumeError(
            f"Another process is working in {path}. Wait until it ends, or stop it first."
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def write_config(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes the resolved settings; the file can be given back with ``--config``."""
    import tomli_w

    known = {k: ",".join(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    text = tomli_w.dumps({k: v for k, v in known.items() if v is not None})
    write_atomically(path / "config.toml", text)


def read_config(path: Path) -> dict[str, Any]:
    """Reads the settings of a run that is to be continued.

    Raises:
        ResumeError: There is no run in this folder.
    """
    file = path / "config.toml"
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ResumeError(
            f"There is no run to continue in {path}: config.toml is missing. If a run was stopped "
            "there before its training began, delete the folder; then start a new run with "
            "leuko compare DATA --out FOLDER."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ResumeError(f"{file} can't be read: {error}. Start a new run.") from error


def read_environment(path: Path) -> dict[str, Any]:
    """Reads what `describe_environment` said when the run began.

    Raises:
        ResumeError: It is missing or broken.
    """
    file = path / "environment.json"
    try:
        facts: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(f"{file} can't be read: {error}. Start a new run.") from error
    return facts


def check_same(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to continue a run under other circumstances.

    Args:
        what: Of what the values are, for the message.
        before: As the run recorded them.
        now: As asked for; keys that are missing here weren't asked for.

    Raises:
        ResumeError: Names each difference.
    """
    differences = [
        f"{key} was {_show(before.get(key))}, now {_show(value)}"
        for key, value in now.items()
        if _show(before.get(key)) != _show(value)
    ]
    if differences:
        raise ResumeError(
            f"This run can't be continued, because its {what} differ: {'; '.join(differences)}. "
            "Continue with the same, or start a new run with another --out."
        )


def _show(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return json.dumps(value, ensure_ascii=False, default=str)


def describe_environment(command: list[str], starts: Sequence[Path] = ()) -> dict[str, Any]:
    """Versions and machine, as far as they can change a result, and the command.

    Args:
        command: As typed.
        starts: Files from which weights start, whose SHA-256 is recorded.
    """
    import hashlib
    from importlib.metadata import PackageNotFoundError, version

    def find(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "command": command,
        "leuko": find("leuko"),
        "python": platform.python_version(),
        **{package: find(package) for package in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _find_processor(),
        # Each job has one, whatever the machine: see leuko.engine.
        "threads": 1,
        "init_sha256": " ".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in starts) or None,
    }


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 by itself; without, it is slower than float32."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def _find_processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
