"""A run that was killed and started anew decides as one that was not."""

import interrupted_runs
import numpy as np
import pytest

CASES = [
    (network, kind) for network in ("mlp", "lstm") for kind in ("frozen", "learning")
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Each controller's run without an interruption, made when it is asked for."""
    made = {}

    def make(network, kind):
        if (network, kind) not in made:
            folder = tmp_path_factory.mktemp(f"{network}-{kind}")
            controller = network
            if kind == "frozen":
                controller = str(folder / "controller")
                interrupted_runs.in_process(
                    interrupted_runs.export, network, controller
                )
            ran = interrupted_runs.whole(controller, folder / "whole.npz")
            made[network, kind] = (controller, *ran)
        return made[network, kind]

    return make


def same_after_kills(uninterrupted, network, kind, folder, kills, seed):
    controller, expected, seconds = uninterrupted(network, kind)
    got, killed = interrupted_runs.with_kills(controller, folder, kills, seed, seconds)
    assert set(got) == set(expected)
    assert len(expected["step"]) == 8 and np.ptp(expected["action"]) > 0
    for name in expected:
        np.testing.assert_allclose(
            got[name], expected[name], rtol=1e-6, atol=1e-7, err_msg=name
        )
    assert not (folder / "backup").exists()
    return killed


@pytest.mark.parametrize(
    ("network", "kind", "kills"), [("mlp", "frozen", 2), ("lstm", "learning", 1)]
)
def test_after_a_kill(uninterrupted, network, kind, kills, tmp_path):
    killed = same_after_kills(uninterrupted, network, kind, tmp_path, kills, seed=0)
    assert killed == kills


@pytest.mark.slow
@pytest.mark.parametrize(("network", "kind"), CASES)
def test_after_twenty_kills(uninterrupted, network, kind, tmp_path):
    """Five for each controller, a few runs, since every run ends some time."""
    killed = 0
    for seed in range(1, 99):
        folder = tmp_path / str(seed)
        folder.mkdir()
        killed += same_after_kills(uninterrupted, network, kind, folder, 3, seed)
        if killed >= 5:
            return
