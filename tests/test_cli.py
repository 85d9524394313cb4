"""The command line as its users meet it: answers, exit codes, one clear message, nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from leuko.cli import main
from leuko.data.drawing import draw_cell
from leuko.data.image import encode_jpeg, encode_png
from leuko.progress import resume_command
from leuko.use.predictor import find_default

# The first study below has the leak meter; it doubles the time of a small one.
QUICK = [
    "--models", "alexnet", "--folds", "2", "--epochs", "1", "--views", "1", "--size", "64",
    "--no-leak-meter",
]  # fmt: skip


def picture(seed: int = 0, kind: str = "LYMPHOCYTE") -> bytes:
    return encode_png(draw_cell(np.random.default_rng(seed), kind, 96))


def class_folders(folder: Path, **counts: int) -> Path:
    for k, (kind, count) in enumerate(counts.items()):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            (folder / kind / f"{i}.png").write_bytes(picture(100 * k + i, kind))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("cli") / "set", LYMPHOCYTE=6, EOSINOPHIL=6)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_all_three_families_from_the_shell(small: Path, tmp_path: Path):
    """A real process: JSON alone on stdout, text on stderr, the run folder printed last."""
    before = hashes(small)
    done = subprocess.run(
        [sys.executable, "-m", "leuko.cli", "compare", str(small), "--folds", "2", "--epochs", "1",
         "--views", "1", "--no-leak-meter", "--json", "--out", str(tmp_path / "run")],
        capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert set(results["models"]) == {"resnet18", "efficientnet_b0", "alexnet"}
    assert len(results["pairs"]) == 3
    assert results["best"] in results["models"]
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"run folder: {tmp_path / 'run'}"
    assert "\x1b" not in done.stderr
    assert hashes(small) == before
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["command"]
    assert recorded[:3] == ["leuko", "compare", str(small)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare", "--sise", "64"], "Did you mean --size"),
        (["compare", "--folds", "many"], "--folds"),
        (["compare", "--models", "resnet19"], "Did you mean 'resnet18'"),
        (["compare", "--size", "48"], "at least 63 x 63"),
        (["compare", "--folds", "1"], "folds is 1"),
        (["compare", "--out", "a", "--resume", "b"], "give one of them"),
        (["compare", "--resume", "nowhere"], "config.toml is missing"),
        (["compare", "--config", "nowhere.toml"], "no file nowhere.toml"),
        (["nonsense"], "nonsense"),
        (["clean", "--recipe", "clasic"], "classic"),
    ],
)
def test_wrong_use_is_exit_code_2_and_one_message(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert says in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir()), "nothing was written"


def bad_csv(name: str) -> bytes:
    return {
        "missing column": b"file,label\na.png,X\n",
        "escapes": b"image,label\n../../a.png,X\n",
        "no rows": b"image,label\n",
    }[name]


@pytest.mark.parametrize(
    ("what", "says"),
    [("missing column", "image"), ("escapes", "outside"), ("no rows", "no")],
)
def test_a_bad_table_is_one_clear_message(what, says, tmp_path: Path, capsys):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "labels.csv").write_bytes(bad_csv(what))
    code = main(["compare", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "run"), *QUICK])
    assert code == 1
    err = capsys.readouterr().err
    assert says in err.splitlines()[-1] or says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("content", ["empty", "text files", "missing"])
def test_a_folder_without_images_is_one_clear_message(content, tmp_path: Path, capsys):
    folder = tmp_path / "set"
    if content != "missing":
        folder.mkdir()
    if content == "text files":
        (folder / "notes.txt").write_text("hello")
    assert main(["compare", str(folder), "--out", str(tmp_path / "run"), *QUICK]) == 1
    err = capsys.readouterr().err
    assert str(folder) in err
    assert "Traceback" not in err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_a_table_as_people_save_it_is_read(encoding, separator, tmp_path: Path, capsys):
    rows = [f"image{separator}label"]
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(picture(i, ("LYMPHOCYTE", "EOSINOPHIL")[i % 2]))
        rows.append(f"{i}.png{separator}{('Größe', 'klein')[i % 2]}")
    (tmp_path / "labels.csv").write_bytes("\r\n".join(rows).encode(encoding))
    assert main(["clean", str(tmp_path / "labels.csv"), "--recipe", "minimal", "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert ledger["steps"][-1]["counts_after"] == {"Größe": 4, "klein": 4}


def test_damaged_files_are_set_aside_listed_and_left_alone(tmp_path: Path, capsys):
    folder = class_folders(tmp_path / "set", LYMPHOCYTE=4, EOSINOPHIL=4)
    whole = encode_jpeg(draw_cell(np.random.default_rng(1), "LYMPHOCYTE", 96))
    damaged = {
        "cut.jpg": whole[: len(whole) // 2],
        "padded.jpg": whole[: len(whole) // 2] + b"\xff\xd9",
        "empty.png": b"",
        "text.png": b"not an image",
    }
    for name, data in damaged.items():
        (folder / "LYMPHOCYTE" / name).write_bytes(data)
    before = hashes(folder)
    assert main(["clean", str(folder), "--json"]) == 3
    steps = {s["name"]: s for s in json.loads(capsys.readouterr().out)["steps"]}
    dropped = {Path(d["image"]).name: d["reason"] for d in steps["drop_unreadable"]["dropped"]}
    assert set(dropped) == set(damaged)
    assert all(dropped.values())
    capsys.readouterr()
    assert main(["compare", str(folder), "--out", str(tmp_path / "run"), *QUICK]) == 3
    said = capsys.readouterr().err
    assert all(f"set aside: LYMPHOCYTE/{name} (" in said for name in damaged)
    assert hashes(folder) == before


def test_one_image_with_two_labels_is_dropped_and_said(tmp_path: Path, capsys):
    rows = ["image,label"]
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
        rows.append(f"{i}.png,{'AB'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "0.png,B"]))
    assert main(["clean", str(tmp_path / "labels.csv"), "--json"]) == 0
    steps = {s["name"]: s for s in json.loads(capsys.readouterr().out)["steps"]}
    assert [d["image"] for d in steps["drop_conflicts"]["dropped"]] == ["0.png", "0.png"]


@pytest.mark.parametrize(
    ("counts", "says"),
    [({"LYMPHOCYTE": 5}, "only LYMPHOCYTE"), ({"LYMPHOCYTE": 5, "MONOCYTE": 1}, "MONOCYTE")],
)
def test_classes_that_cannot_be_compared_are_named(counts, says, tmp_path: Path, capsys):
    folder = class_folders(tmp_path / "set", **counts)
    run = tmp_path / "run"
    assert main(["compare", str(folder), "--out", str(run), *QUICK]) == 1
    assert says in capsys.readouterr().err


def test_a_full_disk_is_said_and_nothing_is_broken(small: Path, tmp_path: Path):
    """A limit on the size of files stands in for a full disk: the same call fails."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000));"
        "from leuko.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["compare", str(small), *QUICK, "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "--out", str(tmp_path / "run")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no space left" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert main([*words, "--resume", str(tmp_path / "run")]) == 0


def test_settings_come_from_file_then_environment_then_command_line(
    small: Path, tmp_path: Path, monkeypatch, capsys
):
    (tmp_path / "mine.toml").write_text("folds = 1\nsize = 20\n")
    words = ["compare", str(small), "--out", str(tmp_path / "run"), "--models", "alexnet"]
    assert main([*words, "--config", str(tmp_path / "mine.toml")]) == 2
    assert "study's size is 20" in capsys.readouterr().err
    monkeypatch.setenv("LEUKO_SIZE", "30")
    assert main([*words, "--config", str(tmp_path / "mine.toml")]) == 2
    assert "study's size is 30" in capsys.readouterr().err
    assert main([*words, "--config", str(tmp_path / "mine.toml"), "--size", "64"]) == 2
    assert "folds is 1" in capsys.readouterr().err


def test_an_unknown_name_in_a_file_is_refused(tmp_path: Path, capsys):
    (tmp_path / "mine.toml").write_text("sise = 20\n")
    assert main(["compare", "--config", str(tmp_path / "mine.toml")]) == 2
    assert "sise" in capsys.readouterr().err


def test_clean_writes_a_set_that_every_command_reads(small: Path, tmp_path: Path, capsys):
    assert main(["clean", str(small), "--recipe", "minimal", "--out", str(tmp_path / "c")]) == 0
    assert main(["clean", str(tmp_path / "c"), "--recipe", "minimal", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert steps[-1]["counts_after"] == {"EOSINOPHIL": 6, "LYMPHOCYTE": 6}
    assert main(["clean", str(small), "--out", str(tmp_path / "c")]) == 2


def test_no_folder_is_not_an_unfinished_run(tmp_path: Path, capsys):
    assert main(["report", str(tmp_path / "nosuch")]) == 1
    told = capsys.readouterr().err
    assert "There is no folder" in told
    assert "--resume" not in told
    assert main(["report", str(tmp_path)]) == 1
    assert "--resume" in capsys.readouterr().err


def test_a_stop_has_a_code_that_the_documentation_names(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("leuko.run.describe_environment", stop)
    assert main(["doctor"]) == 130
    assert "stopped" in capsys.readouterr().err
    main(["--help"])
    assert "130 stopped by Ctrl-C" in " ".join(capsys.readouterr().out.split())
    docs = Path(__file__).parent.parent / "docs" / "commands.md"
    assert "130 stopped by Ctrl-C" in docs.read_text("utf-8")


def test_the_shipped_model_has_a_name(small: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "default"]) == 0
    assert capsys.readouterr().out == "default.onnx\n"
    assert (tmp_path / "default.onnx").read_bytes() == (find_default() / "model.onnx").read_bytes()
    picture = str(small / "LYMPHOCYTE" / "0.png")
    assert main(["predict", picture]) == 0
    answers = capsys.readouterr().out
    assert main(["predict", picture, "--model", "default"]) == 0
    assert capsys.readouterr().out == answers
    # The set is refused, not the model.
    for words in (["evaluate", "default", "nowhere"], ["adapt", "default", "nowhere", "--out=x"]):
        assert main(words) == 1
        told = capsys.readouterr().err
        assert "nowhere" in told
        assert "bundle" not in told
    # What lies there under that name is what is meant.
    (tmp_path / "default").mkdir()
    assert main(["predict", picture, "--model", "default"]) == 1
    assert "There is no bundle in default: bundle.json is missing" in capsys.readouterr().err


def test_doctor_knows_this_machine(capsys):
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"]
    assert facts["cores"] >= 1


def test_a_fault_in_leuko_itself_shows_no_traceback(monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("leuko.run.describe_environment", fail)
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: by design" in err
    assert "Traceback" not in err
    with pytest.raises(ZeroDivisionError):
        main(["doctor", "--debug"])


def test_the_advice_after_a_stop_is_the_same_command():
    run = Path("runs/a b-1")
    words = ["compare", "set", "--out", "x", "--size=64"]
    assert resume_command(words, run) == "leuko compare set --size=64 --resume 'runs/a b-1'"
    assert resume_command(["compare", "--resume", "old"], run).count("--resume") == 1
    assert resume_command(["compare", "--out=x"], run) == "leuko compare --resume 'runs/a b-1'"


def test_a_fetch_without_a_network_says_what_to_do(monkeypatch, capsys):
    def fail(*_args, **_kwargs):
        raise OSError("no route to host")

    kagglehub = pytest.importorskip("kagglehub")
    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    assert main(["fetch", "blood-cells"]) == 1
    err = capsys.readouterr().err
    assert "kaggle.com" in err
    assert main(["fetch", "blood-sells"]) == 2
