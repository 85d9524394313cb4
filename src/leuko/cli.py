"""The command line: which commands there are, where their settings come from, how faults end.

Nothing heavy is imported before a command has been parsed, so that help and a wrong option are
answered at once. Results for programs go to stdout with ``--json``; text for people and progress
go to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.config import Env, Toml

import leuko
from leuko.commands import models, service, sets, studies
from leuko.commands.options import AsJson, say
from leuko.errors import LeukoError, SettingsError

app = App(
    name="leuko",
    help="Classifies white blood cells in blood-smear images, and says how far the result can be "
    "trusted. Research use only, not for diagnosis.",
    version=leuko.__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    help_epilogue="Every command takes --debug (show tracebacks) and --config FILE.toml. "
    "A setting comes from, first to last: default, file, environment (LEUKO_SIZE=96), command "
    "line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 done but some files were set aside, "
    "130 stopped by Ctrl-C.",
)


@app.command
def doctor(*, as_json: AsJson = False) -> int:
    """Show versions, processor, memory and what is installed, for a bug report."""
    from leuko.engine import count_cores
    from leuko.run import describe_environment
    from leuko.storage import free_bytes

    facts = describe_environment([])
    del facts["command"], facts["threads"]
    facts["cores"] = count_cores()
    facts["free_gigabytes"] = round(free_bytes(Path.cwd()) / 1e9, 1)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        return 0
    for key, value in facts.items():
        sys.stdout.write(f"{key:15} {'not installed' if value is None else value}\n")
    if facts["torch"] is None:
        sys.stdout.write("\nTraining needs PyTorch: pip install 'leuko[train]'\n")
    return 0


for command in (
    studies.compare, studies.train, studies.pretrain, studies.report,
    models.predict, models.export,
    models.differential,
    models.evaluate,
    models.adapt,
    sets.audit, sets.clean, sets.fetch, sets.demo,
    service.serve,
):  # fmt: skip
    app.command(command)


def main(tokens: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code instead of raising.

    Args:
        tokens: The words after ``leuko``; None takes them from the process.
    """
    # Fields are made small before anything is looked for, and on so few pixels OpenCV's threads
    # cost a third more than they give; work is shared out by pictures.
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
    words = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        words, config = _take_config(words)
        app.config = config
        code = app(
            words, exit_on_error=False, print_error=True, result_action="return_value",
        )  # fmt: skip
        return code if isinstance(code, int) else 0
    except CycloptsError:
        return 2  # cyclopts has printed what was wrong
    except LeukoError as error:
        if debug:
            raise
        say(f"leuko: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        say("leuko: stopped.")
        return 130
    except BrokenPipeError:
        # The reader of stdout went away, as in `leuko … | head`; that's no fault.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        say(
            f"leuko: a fault in Leuko itself: {type(error).__name__}: {error}\n"
            "Please report it; the same command with --debug shows where it happened."
        )
        return 1


def _take_config(words: list[str]) -> tuple[list[str], list[Any]]:
    """Takes ``--config FILE`` out of the words; gives the sources of settings, strongest first."""
    sources: list[Any] = [Env("LEUKO_", command=False)]
    rest, path = [], None
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            path = next(remaining, None)
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        else:
            rest.append(word)
            continue
        if not path:
            raise SettingsError("--config needs the path of a TOML file.")
    if path is not None:
        try:
            tomllib.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError as error:
            raise SettingsError(f"There is no file {path}; --config takes a TOML file.") from error
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path} can't be read as TOML: {error}.") from error
        sources.append(Toml(path, must_exist=True, use_commands_as_keys=False))
    return rest, sources


if __name__ == "__main__":
    sys.exit(main())
