"""The doctor sees bad versions and unused accelerators, and probes the numbers."""

import numpy as np

from ensjax.experiment import doctor
from ensjax.experiment.doctor import (
    check_accelerators,
    check_versions,
    examine,
    probe_parity,
)


def test_this_machine_is_examined():
    findings = examine()
    assert all(finding.level != "error" for finding in findings)
    text = "\n".join(finding.text for finding in findings)
    assert "jax " in text and "8 device(s) of cpu" in text
    assert "32769 rows" in text  # past 2^15
    assert "NaN: " in text


def test_the_version_that_miscompiles_is_an_error():
    bad = {"jax": "0.10.2", "jaxlib": "0.10.2"}
    (finding,) = check_versions(bad, {})
    assert finding.level == "error" and "jax!=0.10.2" in finding.text
    assert check_versions({"jax": "0.10.1", "jaxlib": "0.10.1"}, {}) == []


def test_a_plugin_of_another_version_is_an_error():
    versions = {"jax": "0.11.2", "jaxlib": "0.11.2"}
    assert check_versions(versions, {"jax-cuda13-plugin": "0.11.2.1"}) == []
    (finding,) = check_versions(versions, {"jax-cuda13-plugin": "0.10.1"})
    assert finding.level == "error"
    assert "pip install jax-cuda13-plugin==0.11.2" in finding.text


def test_an_accelerator_that_jax_does_not_use_is_a_warning():
    signs = ["/dev/nvidia0", "nvidia-smi"]
    (finding,) = check_accelerators("cpu", signs, {})
    assert finding.level == "warning" and "/dev/nvidia0" in finding.text
    assert "ensjax[cuda13]" in finding.text
    (finding,) = check_accelerators("cpu", signs, {"jax-cuda13-plugin": "0.11.2"})
    assert "did not load" in finding.text
    assert check_accelerators("gpu", signs, {}) == []
    assert check_accelerators("cpu", [], {}) == []


def test_a_wrong_last_row_is_found(monkeypatch):
    import jax

    true_vmap = jax.vmap

    def wrong_vmap(function):
        mapped = true_vmap(function)
        return lambda rows: mapped(rows).at[-1].add(1.0)

    monkeypatch.setattr(jax, "vmap", wrong_vmap)
    findings = probe_parity([2**15 + 1])
    assert [finding.level for finding in findings] == ["error"]
    assert "vmap, jit(vmap) with 32769 rows" in findings[0].text


def test_the_probe_accepts_right_numbers_of_every_size():
    assert [finding.level for finding in probe_parity(doctor.PROBE_SIZES)] == ["ok"]
    assert max(doctor.PROBE_SIZES) > 2**15
    assert np.all(np.diff(doctor.PROBE_SIZES) > 0)
