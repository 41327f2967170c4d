import json

import torch
from click.testing import CliRunner

from geomtraj import doctor as room
from geomtraj.cli import main


def test_a_healthy_machine_passes_every_check():
    before = torch.random.get_rng_state()
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["healthy"] and [c["name"] for c in found["checks"]] == list(room.CHECKS)
    assert found["versions"]["torch"] == torch.__version__ and found["machine"]["processors"] >= 1
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_is_wrong_is_told(monkeypatch):
    def crash():
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(room, "CHECKS", {"guard": crash, "diagonal": lambda: (False, "relative error 3.0e-01")})
    monkeypatch.setattr(room, "NEEDED", ("torch", "no-such-package"))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "FAIL guard: RuntimeError: no such kernel" in done.stdout and "FAIL diagonal: relative" in done.stdout
    assert "MISSING: no-such-package: pip install no-such-package" in done.stdout


def test_the_guard_is_asked_in_earnest(monkeypatch):
    monkeypatch.setattr(room, "Hessian", lambda problem: torch.eye(problem.size, dtype=torch.float64))
    holds, found = room._guard()
    assert not holds and "passed" in found
