"""What a policy costs: against a fixed plan of its own, in pairs."""

import time

import pytest

from indis import INDIS
from indis.bench.overhead import overhead, pairs
from indis.cli.main import run
from indis.storage import load_json
from small_cases import toy


class Slow:
    """A policy's plan, after so many seconds of work."""

    def __init__(self, policy, seconds):
        self.policy, self.seconds = policy, seconds

    def __call__(self, *arguments):
        until = time.process_time() + self.seconds
        while time.process_time() < until:
            pass
        return self.policy(*arguments)

    def __getattr__(self, name):
        return getattr(self.policy, name)


def test_a_policy_that_works_as_long_as_the_network_doubles_the_time():
    sampler, model = INDIS(3, "euler", "uniform", width=8).untrained(toy()), toy()
    plain = list(pairs(sampler, model, 64, 6))
    sampler.policy.forward = Slow(sampler.policy.forward, 0.2)
    slow = list(pairs(sampler, model, 64, 6))
    assert len(plain) == len(slow) == 6
    assert overhead(plain)["overhead"] < 1 < overhead(slow)["overhead"]


def test_quartiles_are_of_the_ratios_less_one():
    row = overhead([1.0, 1.1, 1.2, 1.3, 1.4])
    assert (row["low"], row["overhead"], row["high"]) == pytest.approx((0.1, 0.2, 0.3)) and row[
        "repeats"
    ] == 5


def test_the_command_writes_a_row_an_artifact(tmp_path, capsys):
    command = [
        "bench",
        "overhead",
        "--artifact",
        "fashion-nfe3",
        "fashion-nfe3-local",
        "--batch",
        "2",
        "--repeats",
        "2",
    ]
    assert run([*command, "--json", str(tmp_path / "rows.json")]) == 0
    rows = load_json(tmp_path / "rows.json")["rows"]
    assert [row["artifact"] for row in rows] == ["fashion-nfe3", "fashion-nfe3-local"]
    assert all(row["nfe"] == 3 and row["low"] <= row["overhead"] <= row["high"] for row in rows)
    assert capsys.readouterr().err.count("quartiles") == 2


def test_a_fixed_plan_has_no_policy_to_time(tmp_path, capsys):
    from indis import artifact, heuristic

    artifact.save(heuristic(toy(), solver="euler", grid="uniform", steps=2), tmp_path / "plain")
    assert run(["bench", "overhead", "--model", "toy", "--artifact", str(tmp_path / "plain")]) == 2
    assert "decides something" in capsys.readouterr().err
