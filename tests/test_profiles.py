"""Profiles: one switch, clear errors."""

import pytest
import torch

from comet_lib.errors import CometError
from comet_lib.profiles import PROFILES, get_profile


def test_environment_chooses(monkeypatch, tmp_path):
    monkeypatch.setenv("COMET_PROFILE", " Laptop ")
    monkeypatch.setenv("COMET_DATA", str(tmp_path))
    monkeypatch.setenv("COMET_SEED", "7")
    profile = get_profile()
    assert (profile.name, profile.data, profile.seed) == ("laptop", str(tmp_path), 7)
    assert get_profile("tiny").data is None  # tiny keeps to the bundled sample


@pytest.mark.parametrize(("cuda", "name"), [(True, "gpu"), (False, "laptop")])
def test_unset_means_gpu_where_cuda_is(monkeypatch, cuda, name):
    monkeypatch.delenv("COMET_PROFILE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert get_profile().name == name


def test_bad_settings_name_the_fix(monkeypatch, tmp_path):
    with pytest.raises(CometError, match="tiny, laptop, gpu"):
        get_profile("huge")
    with pytest.raises(CometError, match="afrisenti"):
        get_profile("laptop", tmp_path / "missing")
    monkeypatch.setenv("COMET_SEED", "one")
    with pytest.raises(CometError, match="whole number"):
        get_profile("tiny")


def test_budgets_and_sizes_are_sound():
    for profile in PROFILES.values():
        assert profile.name in profile.budget and "RAM" in profile.budget
        assert profile.student["hidden_size"] % profile.student["num_attention_heads"] == 0
        assert 0 <= profile.stage1.alpha <= 1 and 0 <= profile.stage2.alpha <= 1
    assert PROFILES["gpu"].student["num_hidden_layers"] == 6
    assert sum(PROFILES["gpu"].text_limit.values()) == 756_428


def test_a_run_folder_belongs_to_its_settings(comet_home):
    profile = get_profile("tiny")
    folder = profile.run_folder("game")
    assert folder == get_profile("tiny").run_folder("game") and comet_home in folder.parents
    assert folder != profile.with_(seed=1).run_folder("game")


def test_notebook_00_runs_the_whole_game_where_that_takes_minutes():
    assert PROFILES["tiny"].shorter() == PROFILES["tiny"]
    laptop = PROFILES["laptop"].shorter()
    assert (laptop.stage1.epochs, laptop.stage2.epochs) == (1, 0.5)
    gpu, short = PROFILES["gpu"], PROFILES["gpu"].shorter()
    assert short.stage1.epochs == short.stage2.epochs == 1
    assert sum(short.text_limit.values()) < sum(gpu.text_limit.values()) / 10
    assert short.student == gpu.student and short.splices == gpu.splices
