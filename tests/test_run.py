"""The run folder: never overwritten, one process at a time, only the same is continued."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from leuko.errors import OutputError, ResumeError, StorageError
from leuko.run import (
    check_run_folder,
    check_same,
    describe_environment,
    lock_run,
    make_run_folder,
    read_config,
    write_config,
)
from leuko.storage import check_free_space, fill_folder, write_atomically


def test_a_name_is_taken_once(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = make_run_folder(None, "my cells/../x")
    assert first.parent == Path("runs")
    assert first.resolve().parent == tmp_path / "runs"
    assert make_run_folder(None, "my cells/../x") != first


def test_a_folder_with_anything_in_it_is_never_used(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="never overwrites"):
        make_run_folder(tmp_path, "x")
    with pytest.raises(OutputError, match="not a folder"):
        make_run_folder(tmp_path / "notes.txt", "x")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="can't be written"):
        make_run_folder(tmp_path / "notes.txt" / "below", "x")


def test_a_read_only_place_is_named():
    with pytest.raises(OutputError, match=r"/proc/leuko can't be written"):
        make_run_folder("/proc/leuko", "x")


def test_a_second_process_is_refused(tmp_path: Path):
    script = (
        "from leuko.run import lock_run\nfrom pathlib import Path\n"
        f"with lock_run(Path({str(tmp_path)!r})): pass"
    )
    with lock_run(tmp_path):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "Another process is working" in done.stderr
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_settings_come_back_as_they_were(tmp_path: Path):
    settings = {"data": None, "models": ("a", "b"), "size": 64, "rate": 0.1, "keep": False}
    write_config(tmp_path, settings)
    back = read_config(tmp_path)
    assert back == {"models": "a,b", "size": 64, "rate": 0.1, "keep": False}
    check_same("settings", back, {"models": "a,b", "rate": 0.1})
    with pytest.raises(ResumeError, match=r"size was 64, now 96; rate was 0.1, now 0.2"):
        check_same("settings", back, {"size": 96, "rate": 0.2})


def test_a_folder_without_a_run_is_named(tmp_path: Path):
    with pytest.raises(ResumeError, match=r"config\.toml is missing"):
        read_config(tmp_path)
    (tmp_path / "config.toml").write_bytes(b"\xff = 3")
    with pytest.raises(ResumeError, match="can't be read"):
        read_config(tmp_path)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=r"a.txt could not be written: no space left"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_resume_is_advised_only_where_there_is_a_run(tmp_path: Path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        folder.mkdir()
    (run / "config.toml").touch()
    (other / "b").touch()
    with pytest.raises(OutputError, match="delete it if it isn't needed"):
        check_run_folder(other)
    with pytest.raises(OutputError, match=f"--resume {run}"):
        check_run_folder(run)


def test_a_folder_that_could_not_be_filled_is_as_it_was(tmp_path: Path):
    new, empty, full = (tmp_path / name for name in ("new", "empty", "full"))
    empty.mkdir()
    full.mkdir()
    (full / "mine").touch()
    for folder in (new, empty, full):
        with pytest.raises(StorageError), fill_folder(folder):  # noqa: PT012
            (folder / "inner").mkdir()
            (folder / "inner" / "a").touch()
            raise StorageError("no space left")
    assert not new.exists()
    assert not list(empty.iterdir())
    assert (full / "mine").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
            "no space",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.EIO, "Input/output error"), "Input/output"),
    ],
)
def test_every_library_s_word_for_a_failed_write_is_understood(tmp_path: Path, error, says):
    def spoil(_: Path) -> None:
        raise error

    with pytest.raises(StorageError, match=says):
        write_atomically(tmp_path / "a", spoil)


def test_a_fault_that_is_not_the_disk_s_stays_what_it_is(tmp_path: Path):
    def spoil(_: Path) -> None:
        raise RuntimeError("shape")

    with pytest.raises(RuntimeError, match="shape"):
        write_atomically(tmp_path / "a", spoil)


def test_too_little_space_is_said_before_any_work(tmp_path: Path):
    check_free_space(tmp_path, 1)
    with pytest.raises(StorageError, match="needs about 1000000000 MB"):
        check_free_space(tmp_path / "not" / "there", 10**15)


def test_the_record_names_versions_and_threads():
    facts = describe_environment(["leuko", "compare"])
    assert facts["torch"].startswith("2.")
    assert facts["threads"] == 1
    assert facts["command"] == ["leuko", "compare"]
