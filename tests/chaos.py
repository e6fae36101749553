"""Runs that are killed at random points, stopped by signals, or get no disk: all go on bit for bit.

    python tests/chaos.py --kills 50

A command runs in a forked child, so that importing torch is paid once. It is killed with SIGKILL at
a random time, or right before or after its k-th rename, and then run again. All files must equal
those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from indis.cli.main import run as indis
from small_cases import contents

STUDENT = "--steps 3 --solver euler --grid uniform --loss squared"
TEACH = "teach --model toy --solver euler --grid uniform --steps 12"
COMMANDS = {
    "teach": f"{TEACH} --count 4000 --shard 100 --batch 50 --out out",
    "fit": f"fit --method god --data data --out out {STUDENT} --save-every 5 --iterations 60 "
    "--batch 32 --holdout 32 --validate-every 3",
    "fit-phi": f"fit --data data --out out {STUDENT} --save-every 5 --iterations 40 --batch 32 "
    "--holdout 32 --validate-every 5 --width 8 --depth 1",
}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


class Child:
    """A command in a forked process.

    Args:
        words: the command.
        folder: where it runs.
        die_at: the renames after which it kills itself; half a number is right before one.
        file_limit: the most bytes of a file, as on a full disk; what it says must fit too.
    """

    def __init__(
        self, words: str, folder: Path, die_at: float | None = None, file_limit: int | None = None
    ) -> None:
        self.said = folder.parent / f"said-{folder.name}-{time.monotonic_ns()}"
        self.pid = os.fork()
        if not self.pid:
            code = 70
            try:
                code = self._child(words, folder, die_at, file_limit)
            finally:
                os._exit(code)

    def _child(self, words: str, folder: Path, die_at: float | None, file_limit: int | None) -> int:
        handle = os.open(self.said, os.O_WRONLY | os.O_CREAT)
        sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
        os.chdir(folder)
        for number in CODES:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["indis", *words.split()]  # the artifact records it
        if die_at is not None:
            _die_at(die_at)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        return indis(words.split())

    def wait(self) -> int:
        """Return the exit code, minus the signal if one ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def output(self) -> str:
        """Return what it said."""
        return self.said.read_text(errors="replace")


def _die_at(point: float) -> None:
    """Let this process kill itself around its k-th rename."""
    real, done = os.replace, [0]

    def replace(*names: str) -> None:
        if done[0] + 0.5 == point:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*names)
        done[0] += 1
        if done[0] == point:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]


class Chaos:
    """Disturbs one command.

    Args:
        name: of the command.
        folder: where its runs lie.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.words, self.folder = COMMANDS[name], folder / name
        self.folder.mkdir()
        self.number = 0
        begun = time.monotonic()
        self.wanted = self._finished(self._place())
        self.seconds = time.monotonic() - begun

    def _place(self) -> Path:
        place = self.folder / str(self.number)
        self.number += 1
        place.mkdir()
        (place / "data").symlink_to(self.folder.parent / "data")
        return place

    def _finished(self, place: Path) -> dict[str, bytes]:
        child = Child(self.words, place)
        code = child.wait()
        if code:
            raise AssertionError(f"exit code {code} of {self.words!r}: {child.output()}")
        found = contents(place / "out")
        shutil.rmtree(place)
        return found

    def _equal(self, place: Path, what: str) -> None:
        found = self._finished(place)
        if names := [n for n in {**found, **self.wanted} if found.get(n) != self.wanted.get(n)]:
            raise AssertionError(f"{what}: {names} differ from the undisturbed run's")

    def kill_at(self, point: float) -> bool:
        """Kill around a rename, resume, compare; return whether it lived that long."""
        place = self._place()
        killed = Child(self.words, place, die_at=point).wait() == -signal.SIGKILL
        self._equal(place, f"killed at rename {point}")
        return killed

    def kill_after(self, share: float) -> None:
        """Kill after a share of the run's time, resume, compare."""
        place = self._place()
        child = Child(self.words, place)
        time.sleep(share * self.seconds)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        self._equal(place, f"killed after {share:.2f} of the time")

    def stop(self, number: int, share: float) -> bool:
        """Send a signal, check code and sentence, resume, compare; return whether it came in time.

        Raises:
            AssertionError: if the code or the sentence is wrong.
        """
        place = self._place()
        child = Child(self.words, place)
        time.sleep(share * self.seconds)
        os.kill(child.pid, number)
        code, said = child.wait(), child.output()
        if code not in (0, CODES[number]):
            raise AssertionError(f"exit code {code} after signal {number}: {said}")
        if code and not ("run it again to go on" in said or "begins again" in said):
            raise AssertionError(f"no sentence after signal {number}: {said}")
        if "Traceback" in said:
            raise AssertionError(said)
        self._equal(place, f"stopped by signal {number}")
        return bool(code)

    def fill_disk(self, limit: int) -> None:
        """Let files end at a number of bytes; one sentence is expected, then resume, compare."""
        place = self._place()
        child = Child(self.words, place, file_limit=limit)
        code, said = child.wait(), child.output()
        if code not in (0, 2) or "Traceback" in said:
            raise AssertionError(f"exit code {code} on a full disk: {said}")
        self._equal(place, "on a full disk")


def two_writers(folder: Path) -> None:
    """Start two fits of other settings in one folder: one wins, the other says why it does not."""
    place = folder / "two"
    place.mkdir()
    (place / "data").symlink_to(folder / "data")
    children = [Child(COMMANDS["fit"] + extra, place) for extra in ("", " --gamma 0.3")]
    codes = [child.wait() for child in children]
    said = [child.output() for child in children]
    if sorted(codes) != [0, 2]:
        raise AssertionError(f"exit codes {codes} of two writers: {said}")
    loser = said[codes.index(2)]
    if "another process" not in loser and "another one" not in loser and "another co" not in loser:
        raise AssertionError(loser)
    shutil.rmtree(place)


def prepare(folder: Path) -> None:
    """Make the end points that fits read."""
    child = Child(f"{TEACH} --count 96 --shard 48 --out data", folder)
    if child.wait():
        raise AssertionError(child.output())


def main() -> int:
    """Cause chaos from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, begun = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "work"
        folder.mkdir()
        prepare(folder)
        for command in COMMANDS:
            chaos = Chaos(command, folder)
            hit = sum(chaos.kill_at(draw.randrange(1, 40) / 2) for _ in range(options.kills // 2))
            for _ in range(options.kills - options.kills // 2):
                chaos.kill_after(draw.random())
            stopped = sum(chaos.stop(n, draw.random()) for n in CODES for _ in range(5))
            for limit in (600, 1500, 20_000):
                chaos.fill_disk(limit)
            kills = f"{options.kills} kills ({hit} at a rename)"
            others = f"15 signals ({stopped} in time), 3 full disks"
            print(f"{command}: {kills}, {others}: all files equal", flush=True)
        for _ in range(5):
            two_writers(folder)
        print("two writers: 5 times one won, and the other said why it did not")
    print(f"{time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
