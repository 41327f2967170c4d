from synthetic import results_of

from geomtraj.comparing.naming import by_optimizer, optimizer_of
from geomtraj.reporting import runs
from geomtraj.reporting.data import gather


def made(seed=0, optimizer=None, path="run", **meta):
    r = results_of([0, 1], [2.0, 1.0], {"w": [1.0, 2.0]}, seed=seed, path=path, **meta)
    if optimizer is not None:
        r.manifest["optimizer"] = optimizer
    return r


def adam(lr, **settings):
    return {"class": "Adam", "groups": [{"lr": lr, "betas": [0.9, 0.99], "amsgrad": False, **settings}]}


def test_what_the_manifest_tells_of_an_optimizer():
    groups = [{"lr": 1e-3, "betas": [0.9, 0.99], "amsgrad": False, "weight_decay": 0.1}, {"lr": 1e-4}]
    one = made(optimizer={"class": "AdamW", "groups": groups})
    several = made(1)
    several.manifest["optimizers"] = [{"class": c, "groups": [{"lr": 0.02}]} for c in ("Muon", "AdamW")]
    assert runs.groups_table(gather({"g": [one, several, made(2, optimizer=None, lr=0.5)]}, 2)) == [
        ["g", "AdamW", "0.001 / 0.0001", "betas [0.9, 0.99], weight_decay 0.1", "1", "0"],
        ["g", "Muon + AdamW", "0.02", "–", "1", "1"],
        ["g", "–", "0.5", "–", "1", "2"],
    ]
    bare = results_of([0], [1.0], {"w": [1.0]}, optimizer="mine")
    assert (optimizer_of(bare).name, optimizer_of(bare).rate) == ("mine", "–")


def test_runs_of_one_optimizer_are_one_group():
    given = [made(0, adam(1e-3)), made(0, {"class": "SGD", "groups": [{"lr": 0.1}]}), made(1, adam(1e-3))]
    assert {name: len(found) for name, found in by_optimizer(given).items()} == {"Adam": 2, "SGD": 1}


def test_rates_and_settings_tell_groups_apart():
    given = [made(0, adam(1e-3)), made(1, adam(1e-3)), made(0, adam(1e-2)), made(0, adam(1e-2, weight_decay=0.1))]
    assert {name: len(found) for name, found in by_optimizer(given).items()} == {
        "Adam, lr 0.001": 2,
        "Adam, lr 0.01, betas [0.9, 0.99]": 1,
        "Adam, lr 0.01, betas [0.9, 0.99], weight_decay 0.1": 1,
    }


def test_meta_names_first_and_the_folder_last():
    given = [results_of([0], [1.0], {"w": [1.0]}, path=f"runs/{n}", **({"optimizer": n} if n == "mine" else {}))
             for n in ("mine", "other")]  # fmt: skip
    assert list(by_optimizer(given)) == ["mine", "other"]
