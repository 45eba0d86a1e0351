"""What the command line refuses, prints and keeps silent about."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from small import InProcess

from edgeprune import errors
from edgeprune.cli import app, logs, main


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("plan", "-b", "80%", "-b", "90%"), "--budget"),
        (("prune", "--target", "local", "-t", "pi"), "--target"),
        (("history", "-p", "a.toml", "-p", "b.toml"), "--project"),
        (("demo", "--target", "a", "--target", "b"), "--target"),
    ],
)
def test_an_option_that_is_given_twice_is_an_error(
    arguments: tuple[str, ...], option: str, edgeprune: InProcess
) -> None:
    code, out, err = edgeprune(*arguments)
    assert (code, out) == (2, "") and err.startswith(f"error: {option} is given 2 times") and err.count("\n") == 1
    code, out, _ = edgeprune(*arguments, "--json")
    assert code == 2 and json.loads(out)["status"] == "error"


def test_check_takes_several_budgets(edgeprune: InProcess) -> None:
    assert "edgeprune.toml" in edgeprune("check", "-b", "80%", "-b", "p99 20 ms")[2]


@pytest.mark.parametrize("command", ["run", "history", "groups", "rollback", "check", "plan"])
def test_an_error_is_json_with_json(command: str, edgeprune: InProcess) -> None:
    code, out, err = edgeprune(command, "--json")
    assert json.loads(out) == {"schema": 1, "status": "error", "exit_code": code, "error": err[len("error: ") : -1]}
    assert code == errors.UsageError.exit_code


@pytest.mark.parametrize(
    ("arguments", "begin", "names"),
    [
        (("run", "--bugdet", "50%"), "error: edgeprune run: no such option: --bugdet", "--budget"),
        (("run", "--budget"), "error: edgeprune run: ", "'--budget'"),
        (("rum",), "error: edgeprune: no such command 'rum'. ", "'run'"),
        (("run", "local"), "error: edgeprune run: ", "(local)"),
        (("run", "--precision", "fp8"), "error: edgeprune run: invalid value for '--precision': 'fp8'", "'int8'"),
        (("compare",), "error: edgeprune compare: missing argument", "RUN"),
        (("keys",), "error: edgeprune keys: missing argument", "rotate"),
    ],
)
def test_a_word_that_is_no_option_is_one_line_that_names_the_help(
    arguments: tuple[str, ...], begin: str, names: str, edgeprune: InProcess
) -> None:
    code, out, err = edgeprune(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(begin) and names in err
    assert err.rstrip().endswith(f"{begin.split(': ')[1]} --help")
    code, out, err = edgeprune(arguments[0], "--json", *arguments[1:])
    assert code == 2 and f"error: {json.loads(out)['error']}\n" == err


def test_a_path_that_is_too_long_is_one_line(edgeprune: InProcess) -> None:
    code, out, err = edgeprune("report", "--json", "x" * 5000)
    assert code == 2 and "the path is too long; give another one" in json.loads(out)["error"] and len(err) < 200


def test_without_a_command_the_help_is_shown(edgeprune: InProcess) -> None:
    code, out, err = edgeprune()
    assert (code, out) == (2, "") and err.startswith("Usage: edgeprune")


def test_ctrl_c_says_how_to_go_on(edgeprune: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeprune.cli.targets.known", pressed)
    assert edgeprune("targets") == (130, "", "interrupted; run the same command again to resume\n")


@pytest.mark.parametrize("command", ["targets", "--version"])
def test_a_pipe_that_nothing_reads_has_its_own_exit_code(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "edgeprune", command]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, timeout=600, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (errors.EXIT_CLOSED, b"")


def test_every_command_has_quiet_and_verbose() -> None:
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, one in commands.items():
        assert {"--quiet", "-q", "--verbose", "-v"} <= {option for p in one.params for option in p.opts}, name


LIBRARY = "/opt/venv/lib/python3.12/site-packages/torchao/ops.py"
USERS = "/home/me/project/net.py"


def emit(file: str, level: int = logging.WARNING) -> None:
    log = logging.getLogger("anything")
    log.handle(log.makeRecord(log.name, level, file, 1, "text of %s", (file,), None))


def test_warnings_of_libraries_are_shown_only_with_v(screen: None, capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        logs.listen(verbose)
        emit(LIBRARY)
        warnings.showwarning("no triton", UserWarning, LIBRARY, 1)
        err = capsys.readouterr().err
        assert ("text of" in err, "no triton" in err) == (verbose, verbose)


def test_warnings_of_the_users_code_and_errors_of_libraries_are_shown(
    screen: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.listen()
    emit(USERS)
    warnings.showwarning("odd labels", UserWarning, USERS, 7)
    emit(LIBRARY, logging.ERROR)
    logging.getLogger("edgeprune").warning("set aside")
    assert capsys.readouterr().err.splitlines() == [
        f"WARNING: text of {USERS}",
        "WARNING: UserWarning: odd labels (net.py, line 7)",
        f"ERROR: text of {LIBRARY}",
        "WARNING: set aside",
    ]


def test_q_prints_no_warning(screen: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs.listen(quiet=True)
    emit(USERS)
    emit(USERS, logging.ERROR)
    assert capsys.readouterr().err == f"ERROR: text of {USERS}\n"


def test_doctor_takes_the_target_in_two_ways_and_finds_the_project(
    edgeprune: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprune.reports import doctor

    asked: list[tuple[str, Path | None]] = []
    monkeypatch.setattr(doctor, "examine", lambda target, project: asked.append((target, project)) or [])
    assert edgeprune("doctor")[0] == edgeprune("doctor", "pi")[0] == edgeprune("doctor", "--target", "pi")[0] == 0
    Path("edgeprune.toml").touch()
    assert edgeprune("doctor", "pi", "-t", "pi")[0] == 0
    here = Path("edgeprune.toml")
    assert asked == [("local", None), ("pi", None), ("pi", None), ("pi", here)]
    assert edgeprune("doctor", "pi", "-t", "other")[0] == 2


def test_tensorboard_replaces_the_process_so_that_signals_reach_it(
    edgeprune: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    argv: list[str] = []
    monkeypatch.setattr(os, "execv", lambda program, given: argv.extend([program, *given]))
    assert edgeprune("tensorboard", "runs/local")[0] == 2
    (tmp_path / "runs" / "local" / "tensorboard").mkdir(parents=True)
    assert edgeprune("tensorboard", "runs/local", "--port", "7007")[0] == 0
    assert argv[:2] == [sys.executable] * 2 and argv[-1] == "7007" and "127.0.0.1" in argv


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_threads_of_torch_sleep_while_they_wait_unless_the_user_decides(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.cli.logs.listen", lambda: None)
    monkeypatch.setattr("edgeprune.cli.app", lambda **options: sys.exit())
    monkeypatch.setenv("OMP_WAIT_POLICY", own or "")
    if own is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == (own or "PASSIVE")
