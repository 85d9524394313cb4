"""The folder of one run: made once, never overwritten, continued only by the same settings."""

from __future__ import annotations

import json
import os
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leuko.errors import OutputError, ResumeError
from leuko.storage import explain_storage_faults, write_atomically

# What must be the same for a continued run to give what the uninterrupted one would have given.
PINNED = ("leuko", "python", "torch", "torchvision", "numpy", "threads", "processor")


def make_run_folder(out: str | Path | None, name: str) -> Path:
    """Makes the folder of a new run.

    Args:
        out: The folder wanted; None takes the next free ``runs/NAME-1``, ``-2`` … of the
            current folder.
        name: Of the data.

    Raises:
        OutputError: The folder exists and isn't empty, or can't be made.
    """
    if out is None:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
        number = 1
        while (path := Path("runs") / f"{stem}-{number}").exists():
            number += 1
    else:
        path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "is not a folder" if not path.is_dir() else "exists and is not empty"
        raise OutputError(
            f"{path} {what}; a run never overwrites anything. Choose another --out, or continue "
            f"an interrupted run with --resume {path}."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error.strerror or error}). Choose another folder with "
            "--out."
        ) from error
    return path


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

    known = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
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
            f"There is no run to continue in {path}: config.toml is missing. Start one with "
            "leuko compare DATA --out FOLDER."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ResumeError(f"{file} can't be read: {error}. Start a new run.") from error


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


def describe_environment(command: list[str]) -> dict[str, Any]:
    """Versions and machine, as far as they can change a result, and the command."""
    from importlib.metadata import PackageNotFoundError, version

    def find(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = (
        "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "scikit-image",
        "polars", "pillow", "simplejpeg", "matplotlib",
    )  # fmt: skip
    return {
        "command": command,
        "leuko": find("leuko"),
        "python": platform.python_version(),
        **{package: find(package) for package in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _find_processor(),
        # Each job has one, whatever the machine: see leuko.engine.
        "threads": 1,
    }


def _find_processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
