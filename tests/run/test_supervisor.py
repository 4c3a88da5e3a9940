"""The parent of a driver: what it decides, and what becomes of commands whose Ray dies."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import pytest

from prunefuse_ray import owned
from prunefuse_ray.progress import Told
from prunefuse_ray.run import supervisor
from prunefuse_ray.run.processes import Process
from prunefuse_ray.run.supervisor import End, Folder, Restart, Watch, _interrupted, decide, wanted
from tests.support.disturbed import (
    DIGITS,
    HUNG,
    INTERRUPTS,
    KILLS,
    counted,
    finish,
    messages,
    phase,
    round_of,
    selected,
    start,
    victim,
)
from tests.support.disturbed import undisturbed as of_nobody

# --- decisions ------------------------------------------------------------------------------------------------------


def told(**fields):
    return Told(**{"attached": True, "doing": "in round 1, scoring", "retries": 3} | fields)


def after(code, *, killed_for="", restarts=0, starts_failed=0, **fields):
    return decide(code, killed_for, told(**fields), restarts, starts_failed)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_what_a_command_returned_is_the_exit_code(code):
    assert after(code, returned=code) == End(code=code)
    assert after(-signal.SIGKILL, returned=code) == End(code=code), "it was only tidying up"


def test_help_and_unknown_options_end_without_a_word():
    assert decide(2, "", Told(), 0, 0) == End(code=2)


def test_a_bug_of_ours_is_not_tried_again():
    assert after(1, failure="bug", saved=5) == End(code=1)


@pytest.mark.parametrize(
    ("code", "more", "said"),
    [
        (-9, {"killed_for": "Ray's raylet died"}, "Ray's raylet died in round 1, scoring"),
        (1, {}, "Ray ended the driver in round 1, scoring"),
        (1, {"failure": "ray", "message": "ActorDiedError: gone"}, "Ray failed (ActorDiedError: gone) in round 1"),
        (
            -9,
            {"failure": "ray", "message": "ActorDiedError: gone", "killed_for": "nothing moved for 120 s"},
            "Ray failed (ActorDiedError: gone) in round 1",
        ),
        (-9, {"saved": 1}, "the driver was killed (SIGKILL, which the kernel sends when memory runs out"),
        (-11, {"saved": 1}, "the driver was killed (SIGSEGV)"),
    ],
)
def test_what_ray_or_the_kernel_ended_goes_on(code, more, said):
    decision = after(code, **more)
    assert isinstance(decision, Restart)
    assert decision.reason.startswith(said)


def test_a_driver_that_is_killed_before_it_stored_anything_is_not_started_again():
    decision = after(-9)
    assert isinstance(decision, End)
    assert decision.code == 1
    assert "before anything was stored" in decision.message


@pytest.mark.parametrize(("retries", "restarts", "more"), [(0, 0, False), (0, 1, False), (2, 1, True), (2, 2, False)])
def test_at_most_so_many_restarts(retries, restarts, more):
    decision = after(1, retries=retries, restarts=restarts)
    assert isinstance(decision, Restart) == more
    if isinstance(decision, End):
        assert "run.retries" in decision.message


@pytest.mark.parametrize(
    ("returned", "code", "said"),
    [
        (None, 143, "interrupted in round 1, scoring; the same command resumes\n"),
        (143, 143, ""),  # the driver has said so itself
        (0, 0, ""),  # it was done when the signal came: nothing goes on
    ],
)
def test_a_signal_is_told_unless_the_driver_has_come_to_its_end(returned, code, said, capsys):
    folder = SimpleNamespace(close=lambda *, keep: None)
    assert _interrupted(signal.SIGTERM, told(returned=returned), folder) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("set_", "ended"), [("SIG_DFL", 143), ("SIG_IGN", 0)])
def test_a_closed_terminal_ends_a_command_in_order_unless_it_is_to_outlast_that(set_, ended):
    """Else the supervisor would be gone, and all that Ray has written would stay."""
    code = f"""
import os, signal, sys
signal.signal(signal.SIGHUP, signal.{set_})
from prunefuse_ray import interrupts
from prunefuse_ray.run.supervisor import _Signals
signals = _Signals()
os.kill(os.getpid(), signal.SIGHUP)
assert signals.first == {signal.SIGTERM if ended else None}, signals.first
interrupts.install()
try:
    os.kill(os.getpid(), signal.SIGHUP)
except KeyboardInterrupt:
    sys.exit(interrupts.exit_code())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == ended


def test_a_signal_that_comes_twice_at_once_is_one():
    """As service managers and `timeout` send it, to all processes and to the supervisor, which hands it on."""
    code = """
import os, signal
from prunefuse_ray import interrupts
from prunefuse_ray.run.supervisor import _Signals
signals = _Signals()
for _ in range(2):
    os.kill(os.getpid(), signal.SIGTERM)
assert signals.count == 1
interrupts.install()
with interrupts.deferred():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    interrupts._State.since -= 2 * interrupts.ONE_SIGNAL
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        print("again")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "again\n"


@pytest.mark.parametrize("base", ["/tmp", "/scratch/users/alice/tmp", "/tmp/ключи-и-дан"])
def test_rays_sockets_fit_below_the_folder(base, monkeypatch):
    monkeypatch.setattr(owned.tempfile, "gettempdir", lambda: base)
    folder = f"{owned.short_base()}/prunefuse-12345678/ray"
    socket = f"{folder}/session_2026-11-29_09-35-40_123456_4194304/sockets/plasma_store"
    assert len(os.fsencode(socket)) <= 107


def test_without_a_folder_for_temporary_files_a_command_says_so(monkeypatch, capsys):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(owned.tempfile, "gettempdir", none)
    monkeypatch.setattr(supervisor, "adopt_orphans", lambda: None)
    monkeypatch.setattr(supervisor, "_Signals", lambda: None)
    assert supervisor.supervise() == 2
    assert "set TMPDIR" in capsys.readouterr().err


def test_folders_of_commands_that_were_killed_go_with_the_next_one(tmp_path, monkeypatch):
    """With all that Ray had spilled. Those of commands and drivers that live stay, and those that a message names."""
    monkeypatch.setattr(owned.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(owned, "LONGEST_BASE", 1000)  # pytest's folders are long
    killed, kept, driven = Folder(), Folder(), Folder()
    kept.close(keep=True)
    kept.lock.close()
    killed.lock.close()
    child = subprocess.Popen(["sleep", "60"], pass_fds=(driven.lock.fileno(),))
    driven.lock.close()
    (tmp_path / "prunefuse-other").mkdir()
    last = Folder()
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {kept.path.name, driven.path.name, last.path.name, "prunefuse-other"}
    child.kill()
    child.wait()
    last.close(keep=False)
    assert not last.path.exists()
    Folder()
    assert not driven.path.exists()


def test_a_start_of_ray_is_tried_twice():
    first = after(-9, killed_for="Ray did not start within 40 s", starting_ray=True, retries=0)
    assert isinstance(first, Restart)
    second = after(-9, killed_for="Ray did not start within 40 s", starting_ray=True, starts_failed=1)
    assert isinstance(second, End)
    assert "twice" in second.message


def test_a_driver_that_cannot_even_start_says_so():
    decision = decide(1, "", Told(), 0, 0)
    assert isinstance(decision, End)
    assert "did not start" in decision.message


@pytest.mark.parametrize(
    ("arguments", "environment", "supervised"),
    [
        (["run"], {}, True),
        (["sweep", "--preset", "digits_sweep"], {}, True),
        (["run", "--help"], {}, False),
        (["plan"], {}, False),
        ([], {}, False),
        (["run"], {"RAY_ADDRESS": "auto"}, False),
    ],
)
def test_only_what_starts_ray_itself_is_supervised(arguments, environment, supervised):
    assert wanted(arguments, environment) == supervised


def test_the_supervisor_is_small():
    """It outlives what is killed for its memory, and costs a command nothing."""
    loaded = "import sys; from prunefuse_ray import cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "torch", "pydantic", "numpy", "pyarrow"} & set(found)


# --- the watch ------------------------------------------------------------------------------------------------------


DRIVER = 10


def tree(*, cpu=0.0, raylet="S", worker="S", driver="S", **names):
    return [
        Process(pid=DRIVER, parent=1, name="python", state=driver, cpu=cpu),
        Process(pid=11, parent=DRIVER, name="gcs_server", state="S", cpu=0.0),
        Process(pid=12, parent=DRIVER, name="raylet", state=raylet, cpu=0.0),
        Process(pid=13, parent=12, name="ray::IDLE", state=worker, cpu=0.0),
    ]


def looks(watch, seconds, found, said):
    """The first verdict with something in it within so many seconds, and when it came."""
    for second in range(1, int(seconds) + 1):
        verdict = watch.look(found(second) if callable(found) else found, said, 1.0)
        if verdict != supervisor.Verdict():
            return second, verdict
    return None, supervisor.Verdict()


def test_work_is_never_quiet():
    """Two hours at a tenth of a core, as on a machine that many share."""
    assert looks(Watch(driver=DRIVER), 7200, lambda s: tree(cpu=s / 10), told())[0] is None


def test_who_wants_a_core_and_gets_none_is_not_quiet():
    assert looks(Watch(driver=DRIVER), 7200, tree(worker="R"), told())[0] is None


def test_people_may_take_their_time():
    assert looks(Watch(driver=DRIVER), 100_000, tree(), told(waiting=True))[0] is None


def test_nothing_that_moves_ends_a_driver():
    second, verdict = looks(Watch(driver=DRIVER), 3600, lambda s: tree(cpu=s / 100), told())
    assert second == pytest.approx(supervisor.QUIET, abs=supervisor.WINDOW)
    assert "nothing moved" in verdict.end_for


def test_a_store_may_be_asked_for_as_long_as_it_was_allowed():
    second, _ = looks(Watch(driver=DRIVER), 7200, tree(), told(patience=1800.0))
    assert second == pytest.approx(3600, abs=supervisor.WINDOW)


def test_a_start_of_ray_that_hangs_is_ended_sooner():
    second, verdict = looks(Watch(driver=DRIVER), 3600, tree(), told(starting_ray=True))
    assert second == pytest.approx(supervisor.QUIET_START, abs=supervisor.WINDOW)
    assert "did not start" in verdict.end_for
    second, _ = looks(Watch(driver=DRIVER), 3600, lambda s: tree(cpu=s), told(starting_ray=True))
    assert second == pytest.approx(supervisor.LONGEST_START, abs=supervisor.WINDOW)


@pytest.mark.parametrize("gone", [lambda: tree(raylet="Z"), lambda: [p for p in tree() if p.name != "raylet"]])
def test_a_dead_raylet_ends_its_driver_at_once(gone):
    watch = Watch(driver=DRIVER)
    assert watch.look(tree(), told(), 1.0) == supervisor.Verdict()
    assert watch.look(gone(), told(), 1.0).end_for == "Ray's raylet died"
    watch = Watch(driver=DRIVER)
    watch.look(tree(), told(), 1.0)
    for done in ({"returned": 0}, {"failure": "ray", "message": "ActorDiedError: gone"}):
        assert watch.look(gone(), told(**done), 1.0) == supervisor.Verdict(), "it is shutting Ray down"


def test_a_stopped_process_of_rays_is_ended():
    second, verdict = looks(Watch(driver=DRIVER), 600, lambda s: tree(cpu=s, worker="T"), told())
    assert second == supervisor.STOPPED
    assert [p.pid for p in verdict.kill] == [13]


def test_a_stopped_driver_is_left_alone():
    watch = Watch(driver=DRIVER)
    second, verdict = looks(watch, 600, tree(driver="T", worker="T"), told())
    assert (second, verdict.end_for, verdict.kill) == (1, "", ())
    assert "SIGCONT" in verdict.say
    assert looks(watch, 3600, tree(driver="T", worker="T"), told())[0] is None


# --- commands whose processes die -----------------------------------------------------------------------------------


def alone(where, *more):
    """(what the run selects, how long it takes)"""
    since = time.monotonic()
    done = finish(start((*DIGITS, *more), where), where, since)
    assert done.code == 0, done.errors
    assert messages(done) == [], "a run that nothing happens to says nothing there"
    return selected(where), done.seconds


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    where, seconds = of_nobody(tmp_path_factory)
    return selected(where), seconds


@pytest.fixture(scope="module")
def in_worker_groups(tmp_path_factory):
    """On two workers the networks that select are others than on one, and the same every time."""
    return alone(tmp_path_factory.mktemp("workers"), *OFTEN["workers"])


LEFT = "files that a driver left when it was killed"
"""A kill may leave a file that was half written, of which the next driver tells."""


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_run_goes_on_when_ray_dies_again_and_again(undisturbed, tmp_path):
    """A worker that is just starting, then the raylet, then the GCS: three deaths, three lines, the same ids."""
    process = start(DIGITS, tmp_path)
    for role, begun in (("starting worker", None), ("raylet", 0), ("GCS", 1)):
        while begun is not None and process.poll() is None and round_of(tmp_path) < begun:
            time.sleep(0.05)
        os.kill(victim(process, role, time.monotonic() + 120), signal.SIGKILL)
    done = finish(process, tmp_path, time.monotonic(), timeout=600)
    assert done.code == 0, done.errors
    assert selected(tmp_path) == undisturbed[0]
    lines = [line for line in messages(done) if LEFT not in line]
    assert 2 <= len(lines) <= 3, done.errors  # Ray replaces some starting workers by itself
    assert all("started again" in line for line in lines), done.errors


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "parts"),
    [
        (signal.SIGTERM, [0.5]),
        pytest.param(signal.SIGTERM, [0.3, 0.6], marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, [0.3, 0.6], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_signal_ends_a_run_in_one_line_and_the_same_command_goes_on(undisturbed, tmp_path, number, parts):
    expected, seconds = undisturbed
    for part in parts:
        process = start(DIGITS, tmp_path)
        time.sleep(seconds * part)
        process.send_signal(number)
        hit = phase(tmp_path)
        done = finish(process, tmp_path, time.monotonic())
        if done.code:
            assert done.code == INTERRUPTS[number], done.errors
            assert done.seconds < 25, hit
            # The signal before may have come between a commit and the removal of what it left.
            (line,) = [line for line in messages(done) if LEFT not in line]
            assert line.startswith("interrupted "), done.errors
            assert line.endswith("; the same command resumes"), done.errors
    assert finish(start(DIGITS, tmp_path), tmp_path, 0).code == 0
    assert selected(tmp_path) == expected


OFTEN = {
    "actors": ("--scoring.actors", "[1,2]"),
    "workers": ("--workers.count", "[2,2]", "--scoring.actors", "[1,1]"),
    "": (),
}
KILLED = [
    *((role, "") for role in ("starting worker", "idle worker", "raylet", "GCS", "dashboard agent",
                              "runtime environment agent", "log monitor", "dashboard", "autoscaler's monitor")),
    ("scoring actor", "actors"), ("train worker", "workers"), ("train controller", "workers"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize(("role", "how"), KILLED, ids=lambda v: str(v) or "driver")
def test_a_run_survives_whatever_dies(undisturbed, in_worker_groups, tmp_path, role, how, number, record_property):
    """At random moments of a run, one after the other until it is done. KILLS=20: twenty of each.

    A run goes on by itself, with the same ids; only where Ray's start is hit twice in a row may it end, with a message.
    """
    expected, seconds = in_worker_groups if how == "workers" else undisturbed
    rng = random.Random(f"{role} {number}")
    kills, hit, runs, ended = KILLS or 1, Counter(), 0, 0
    while hit.total() < kills:
        assert runs < 3 * kills, f"runs have too few processes of the kind {role}"
        runs, where = runs + 1, tmp_path / str(runs)
        while True:
            process = start((*DIGITS, *OFTEN[how], "--run.retries", str(kills)), where)
            while hit.total() < kills:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=rng.uniform(0, seconds))
                pid = victim(process, role, math.inf)
                if pid is None:
                    break
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    hit[phase(where)] += 1
            done = finish(process, where, time.monotonic(), timeout=600)
            print(f"{role} {signal.Signals(number).name}: {done.code}, {hit.total()} hit\n{done.errors}", flush=True)
            assert "(raylet)" not in (where / "output").read_text()
            if done.code == 0:
                break
            assert done.code == 1, "hung" if done.code == HUNG else done.errors
            assert "Ray does not start on this machine" in done.errors.splitlines()[-1]
            assert kills > 1, "one kill ends no run"
            ended += 1
        assert selected(where) == expected
    outcome = f"{counted(hit)}\n{ended} times ended because Ray did not start twice in a row"
    record_property("outcome", outcome)
    print(outcome)


def test_who_has_waited_for_people_is_not_quiet_when_the_wait_ends():
    """The driver looks for labels every ten seconds, and does not wait while it looks."""
    watch = Watch(driver=DRIVER)
    assert looks(watch, 1005, tree(), told(waiting=True))[0] is None
    assert looks(watch, 60, tree(), told())[0] is None
