"""What fits a memory, and what is fastest."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from ensjax import nn
from ensjax.planning import Settings, choices, find_choices, plan, tune
from ensjax.planning.choices import blocks_of

ONE_STEP = dict(steps=1, steps_per_call=1)


def make_job(kit):
    """Four members whose activations are most of the memory; `remat` helps."""

    def of(settings):
        def make_model(rngs):
            return nn.MLP(
                in_features=64,
                hidden=(16,) * 6,
                num_outputs=3,
                remat=bool(settings.remat),
                rngs=rngs,
            )

        job = kit.job(num_members=4, evaluated=False, **ONE_STEP)
        rows = dict(block=settings.block, batch_size=settings.batch_size)
        data = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((4096, *x.shape[1:]), x.dtype), job.data
        )
        return dataclasses.replace(
            job, make_model=make_model, data=data, options={**job.options, **rows}
        )

    return of


ALL = Settings(block=None, remat=False, batch_size=2048)


def peak_of(kit, settings):
    return plan(make_job(kit)(settings), mesh=kit.mesh(1, 1), costs=False).peak_bytes


def search(kit, memory_bytes):
    return find_choices(
        make_job(kit),
        ALL,
        mesh=kit.mesh(1, 1),
        local_members=4,
        memory_bytes=memory_bytes,
    )


def test_blocks_are_powers_of_two_that_divide_and_all():
    assert blocks_of(1) == [1]
    assert blocks_of(6) == [1, 2, 6]
    assert blocks_of(16) == [1, 2, 4, 8, 16]


def test_what_cannot_change_is_not_tried(kit, monkeypatch):
    """With made-up peaks: half the batch takes half, a smaller block less."""
    asked = []

    def planned(job, **others):
        del others
        asked.append((job.options["block"], job.options["batch_size"]))
        peak = job.options["batch_size"] * (1 if job.options["block"] is None else 0.5)
        return SimpleNamespace(peak_bytes=peak)

    monkeypatch.setattr(choices, "plan", planned)

    def searched(memory, *fixed):
        asked.clear()
        return find_choices(
            make_job(kit),
            ALL,
            mesh=kit.mesh(1, 1),
            local_members=4,
            memory_bytes=memory,
            fixed=fixed,
        ).best

    best = searched(600, "block")
    assert (best.settings.block, best.settings.batch_size) == (None, 512)
    assert {block for block, _ in asked} == {None}
    assert searched(600, "batch_size") is None
    assert {size for _, size in asked} == {2048}
    assert searched(600, "block", "batch_size") is None
    assert set(asked) == {(None, 2048)}  # as it is, and with remat


@pytest.mark.slow
def test_what_fits_changes_as_little_as_it_can(kit):
    whole = peak_of(kit, ALL)
    two = peak_of(kit, dataclasses.replace(ALL, block=2))
    one = peak_of(kit, dataclasses.replace(ALL, block=1))
    assert one < two < whole
    assert search(kit, whole).best.settings == ALL
    found = search(kit, two)
    assert found.best.settings == dataclasses.replace(ALL, block=2)
    assert found.tried[0].settings == ALL and not found.tried[0].fits
    assert found.best.peak_bytes == two
    # Below what blocks of one take comes another batch; `remat` alone is tried first.
    found = search(kit, one - 1)
    assert found.best.settings.block == 1 and found.best.peak_bytes < one
    assert any(c.settings.remat and c.settings.batch_size == 2048 for c in found.tried)


@pytest.mark.slow
def test_nothing_fits_less_than_the_data(kit):
    found = search(kit, 1000)
    assert found.best is None and not any(choice.fits for choice in found.tried)
    assert len(found.tried) < 12  # it is not the batch: halving it ends early


@pytest.mark.slow
def test_tuning_times_every_way_and_the_fastest_is_first(kit):
    job = kit.job(num_members=4, evaluated=False, **ONE_STEP)
    tuning = tune(job, mesh=kit.mesh(2, 1))
    ways = {(t.block, t.unroll) for t in tuning.timings}
    assert {t.form for t in tuning.timings} == {None}
    assert ways == {("auto", False), (1, False), ("all", False), (1, True)}
    seconds = [t.seconds_per_step for t in tuning.timings]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert tuning.best.seconds_per_step <= tuning.auto.seconds_per_step
    assert tuning.auto_block == 2 and tuning.data == "the job's own"


@pytest.mark.slow
def test_tuning_times_forms_of_convolutions_too(kit):
    def job_of(form):
        def cnn(rngs):
            return nn.CNN(
                image_shape=(8, 8, 1),
                features=(4, 8),
                num_outputs=3,
                conv_form=form,
                rngs=rngs,
            )

        job = kit.job("cnn", num_members=4, evaluated=False, **ONE_STEP)
        return dataclasses.replace(job, make_model=cnn)

    forms = {form: job_of(form) for form in ("plain", "mixed")}
    tuning = tune(job_of("auto"), forms=forms, mesh=kit.mesh(2, 1))
    ways = {(t.block, t.form) for t in tuning.timings if not t.unroll}
    blocks = ("auto", 1, "all")
    assert ways == {(b, f) for b in blocks for f in (None, "plain", "mixed")}
    assert tuning.auto.form is None and tuning.auto.block == "auto"


@pytest.mark.slow
def test_one_local_member_leaves_nothing_to_tune(kit):
    job = kit.job(num_members=2, evaluated=False, **ONE_STEP)
    tuning = tune(job, mesh=kit.mesh(2, 1))
    assert [t.block for t in tuning.timings] == ["auto"]
