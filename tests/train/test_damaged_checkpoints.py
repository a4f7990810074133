"""A run whose last checkpoint was damaged goes on from the one before."""

import shutil

import pytest

from ensjax.checkpoint.seals import DamagedCheckpoint

SAVED = dict(steps_per_call=5, log_every_steps=10, save_every_steps=5)


def test_a_run_goes_on_from_the_last_whole_checkpoint(kit, tmp_path, capsys):
    ensemble, data = kit.ensemble("mlp-dropout"), kit.data("mlp-dropout")
    options = dict(SAVED, sampling="bootstrap")
    unbroken, log = kit.fit(
        ensemble, data, checkpoint_dir=tmp_path / "unbroken", **options
    )
    options["checkpoint_dir"] = tmp_path / "run"
    kit.fit(ensemble, data, steps=15, **options)
    (tmp_path / "run/15/state/manifest.ocdbt").write_bytes(b"")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.warns(UserWarning, match="15 is damaged .*; going on from step 10"):
        resumed, resumed_log = kit.fit(ensemble, data, **options)
    assert resumed_log.resumed_step == 10
    kit.check_equal(resumed, unbroken)
    assert resumed_log.steps.tolist() == log.steps.tolist() == [10, 20]
    assert (resumed_log.metrics["loss"] == log.metrics["loss"]).all()
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert kept == {"15", "20", "15.damaged"}
    # Where progress is printed, this is a line of it.
    capsys.readouterr()
    options["checkpoint_dir"] = tmp_path / "copy"
    kit.fit(ensemble, data, progress=True, **options)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("checkpoint 15 is damaged (ValueError: DATA_LOSS")
    assert first.endswith("; going on from step 10")
    assert second == "resuming from step 10 of 20"


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_alone(kit, tmp_path):
    options = dict(SAVED, checkpoint_dir=tmp_path)
    kit.fit(kit.ensemble(), kit.data(), **options)
    for step in ("15", "20"):
        (tmp_path / step / "meta/metadata").write_text("{")
    with pytest.raises(DamagedCheckpoint, match="no checkpoint in .* is whole: .*20"):
        kit.fit(kit.ensemble(), kit.data(), **options)
    assert {path.name for path in tmp_path.iterdir()} == {"15", "20"}
