"""The Held-Suarez atmosphere, archives of it, and the cache that keeps them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from ensjax import make_mesh, map_members
from ensjax.emulate.archive import Archive
from ensjax.emulate.held_suarez import HeldSuarez
from ensjax.emulate.held_suarez_archive import held_suarez_archive
from ensjax.emulate.kept import archive_folder, kept_archive, kept_path
from ensjax.emulate.trajectories import advance

pytest.importorskip("dinosaur")
# Hours, not days: what is tested is the program.
SYSTEM = HeldSuarez(num_levels=2, step_minutes=120)


@pytest.fixture(scope="module")
def start():
    return SYSTEM.start(jax.random.key(0))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_start_is_isothermal_air_of_1000_hectopascal(start):
    temperature, pressure = SYSTEM.observe(start)
    assert temperature.shape == (32, 64)
    np.testing.assert_allclose(temperature, 288, atol=1e-3)
    assert 950 < pressure.min() < 990 < 1010 < pressure.max() < 1050
    area_mean = (pressure * SYSTEM.latitude_weights[:, None]).mean()
    assert area_mean == pytest.approx(1000, abs=1)
    lat, lon = SYSTEM.space["lat"], SYSTEM.space["lon"]
    assert (np.diff(lat) > 0).all() and lat[0] == pytest.approx(-85.76, abs=0.01)
    np.testing.assert_allclose(lon, 5.625 * np.arange(64), atol=1e-4)


@pytest.fixture(scope="module")
def days_later(start):
    """`days_later(n)`, by one program."""
    run = jax.jit(lambda x, days: advance(SYSTEM, x, days * SYSTEM.steps_per_day))
    return lambda days: run(start, days)


def test_a_day_keeps_mass_and_moves_towards_the_profile(start, days_later):
    state = days_later(1)
    before, after = (SYSTEM.observe(x) for x in (start, state))
    weights = SYSTEM.latitude_weights[:, None]
    np.testing.assert_allclose(
        (after[1] * weights).mean(), (before[1] * weights).mean(), atol=0.5
    )
    # At 750 hPa the profile is warmer than 288 K at the equator and colder at poles.
    zonal = after[0].mean(axis=-1)
    assert zonal[0] < 287.5 and zonal[-1] < 287.5 and zonal[16] > zonal[0] + 1


def test_a_state_is_its_fields(days_later):
    """And back; fields that the truncation does not hold come back smoother."""
    state = days_later(1)
    fields = SYSTEM.fields(state)
    assert fields.shape == (32, 64, 7) and len(SYSTEM.channels) == 7
    again = SYSTEM.from_fields(fields)
    for name in ("vorticity", "divergence", "temperature_variation"):
        one, other = (np.asarray(getattr(x, name)) for x in (state, again))
        np.testing.assert_allclose(other, one, atol=2e-5 * np.abs(one).max())
    temperature, pressure = SYSTEM.observe(state)
    lowest = SYSTEM.channels.index("temperature_2")
    np.testing.assert_allclose(fields[..., lowest], temperature, rtol=1e-6)
    # Of the sum that is its logarithm, of about 20, some units in the last place.
    np.testing.assert_allclose(fields[..., -1], pressure, rtol=3e-5)
    size = np.asarray(fields).std(axis=(0, 1), keepdims=True)
    rough = fields + size * jax.random.normal(jax.random.key(0), fields.shape)
    once = SYSTEM.fields(SYSTEM.from_fields(rough))
    twice = SYSTEM.fields(SYSTEM.from_fields(once))
    fields, rough, once, twice = map(np.asarray, (fields, rough, once, twice))
    assert np.all(np.abs(twice - once) < 1e-4 * np.abs(once).max(axis=(0, 1)))
    assert np.all((once - rough).std(axis=(0, 1)) > 0.3 * fields.std(axis=(0, 1)))
    with pytest.raises(ValueError, match="fields must be"):
        SYSTEM.from_fields(fields[..., :-1])


def test_noise_is_on_waves_alone_and_in_proportion(days_later):
    state = days_later(2)
    other = SYSTEM.perturb(state, jax.random.key(1), 0.2)
    change = np.asarray(other.temperature_variation - state.temperature_variation)
    assert not change[:, 0].any()
    own = np.asarray(state.temperature_variation)[:, 1:]
    np.testing.assert_allclose(
        np.sqrt(np.square(change[:, 1:]).sum() / np.square(own).sum()), 0.2, rtol=0.2
    )
    for field in ("vorticity", "divergence", "log_surface_pressure"):
        np.testing.assert_array_equal(getattr(other, field), getattr(state, field))
    np.testing.assert_array_equal(
        SYSTEM.perturb(state, jax.random.key(1), 0.0).temperature_variation,
        state.temperature_variation,
    )


SMALL = dict(
    num_cases=3, num_members=2, num_runs=2, system=SYSTEM, lead_days=(0, 1),
    spin_up_days=1, gap_days=1, settle_days=0, cases_per_call=2,
    mesh=make_mesh(member=1),
)  # fmt: skip


def test_programs_of_other_meshes_can_use_it_after_a_first_use_in_one():
    """Its matrices belong to no mesh, although they are made where it is first used."""
    system = dataclasses.replace(SYSTEM, step_minutes=96)  # of no other test
    keys = jax.random.split(jax.random.key(1), 2)
    found = [
        map_members(_first_observed(system), kinds=("member",), mesh=mesh)(keys)
        for mesh in (make_mesh(member=2), make_mesh(member=1), make_mesh(data=2))
    ]
    expected = jax.vmap(_first_observed(system))(keys)
    for values in found:
        # Rounding of transforms; the wave of pressure is of some 3 %.
        np.testing.assert_allclose(values, expected, rtol=1e-4)


@functools.cache
def _first_observed(system):
    return lambda key: system.observe(system.step(system.start(key)))


def test_what_is_seen_can_be_put_into_another_state(start, days_later):
    fields = SYSTEM.observe(days_later(1))
    found = SYSTEM.insert(start, fields)
    np.testing.assert_allclose(SYSTEM.observe(found)[0], fields[0], atol=2e-3)
    # The pressure is the exponential of what is truncated, of six digits in float32.
    np.testing.assert_allclose(SYSTEM.observe(found)[1], fields[1], rtol=1e-4)
    assert np.abs(SYSTEM.observe(start)[1] - fields[1]).max() > 1
    for name in ("vorticity", "divergence"):
        np.testing.assert_array_equal(getattr(found, name), getattr(start, name))
    np.testing.assert_array_equal(
        found.temperature_variation[:-1], start.temperature_variation[:-1]
    )


def test_an_archive_reports_its_progress_and_is_kept(tmp_path):
    lines = []
    archive = held_suarez_archive(**SMALL, say=lines.append)
    assert archive.values.shape == (3, 2, 2, 2, 32, 64)
    assert archive.case.tolist() == [0, 10_000, 1]
    assert np.isfinite(archive.values).all()
    assert lines[-2].startswith("Held-Suarez T21, 2 levels: 15 of 15 member-days")
    assert lines[-2].endswith("0 s left") and "kept" in lines[-1]
    # The forecast starts of one run lie a day apart: a member of the first, started
    # from the truth but for noise on waves, is near the second a day later.
    np.testing.assert_allclose(archive.truth[0, 1], archive.truth[2, 0], atol=2e-2)
    files = list((tmp_path / "ensjax" / "archives").iterdir())
    assert len(files) == 1 and files[0].suffix == ".npz"
    again = held_suarez_archive(**SMALL, say=lines.append)
    assert lines[-1].startswith("read")
    np.testing.assert_array_equal(again.values, archive.values)


def test_settings_name_the_file():
    settings = dict(system=dataclasses.asdict(SYSTEM), seed=0)
    assert kept_path("a", settings) == kept_path("a", dict(reversed(settings.items())))
    assert kept_path("a", settings) != kept_path("a", settings | {"seed": 1})
    assert kept_path("a", settings).parent == archive_folder()


def test_a_damaged_file_is_made_again():
    def make():
        return Archive(np.ones((1, 1, 1, 1)), case=[0], lead=[0], variable=["x"])

    lines = []
    kept_archive("a", {}, make, say=lines.append)
    path = kept_path("a", {})
    path.write_bytes(path.read_bytes()[:50])
    found = kept_archive("a", {}, make, say=lines.append)
    assert found.values.item() == 1 and "made again" in lines[-2]
    assert Archive.load(path).values.item() == 1


def test_an_imperfect_simulator_has_other_friction_and_another_profile(days_later):
    """By one step, whose difference is that of the forcing alone."""
    state = days_later(1)

    def after(**settings):
        system = dataclasses.replace(SYSTEM, **settings)
        return np.asarray(system.fields(jax.jit(system.step)(state)))

    assert dataclasses.replace(SYSTEM, friction_days=0.25).name.endswith("0.25 days")
    assert SYSTEM.name == "Held-Suarez T21, 2 levels"
    usual = after()
    rubbed, flat = after(friction_days=0.25), after(contrast_kelvin=30.0)
    kept = (rubbed * usual).sum(axis=(0, 1)) / (usual**2).sum(axis=(0, 1))
    top, low = (kept[SYSTEM.channels.index(f"vorticity_{n}")] for n in (1, 2))
    # Friction reaches up to .7 of the surface pressure: at .75, 1 / 6 of its rate.
    assert low == pytest.approx(np.exp(-(4 - 1) / 6 * SYSTEM.step_length), abs=0.003)
    assert top == pytest.approx(1.0, abs=0.003)
    # Less contrast is more warmth at the poles, in a fortieth of the gap a day there.
    warmer = (flat - usual)[..., SYSTEM.channels.index("temperature_2")].mean(axis=1)
    pole = 30.0 * 0.75 ** (2 / 7) * SYSTEM.step_length / 40
    assert warmer[0] == pytest.approx(pole, rel=0.2) and abs(warmer[16]) < 0.2 * pole


def test_what_does_not_work_is_refused_before_any_work():
    with pytest.raises(ValueError, match="truncation is one of"):
        HeldSuarez(truncation=20)
    with pytest.raises(ValueError, match="must divide a day"):
        HeldSuarez(step_minutes=50)
    with pytest.raises(ValueError, match="friction_days must be a number above 0"):
        HeldSuarez(friction_days=0)
    with pytest.raises(ValueError, match="friction_days must be a number above 0"):
        HeldSuarez(friction_days="1")
    with pytest.raises(ValueError, match="contrast_kelvin must be a number above 0"):
        HeldSuarez(contrast_kelvin=float("nan"))
    with pytest.raises(ValueError, match="must rise"):
        held_suarez_archive(lead_days=(5, 5))
    with pytest.raises(ValueError, match="num_cases must be at least 1"):
        held_suarez_archive(num_cases=0)
