"""Is a small spherical network with noise inside calibrated, and are its waves right?

    ensjax run configs/fourcastnet3.py
    ensjax run configs/fourcastnet3.py:claims
    ensjax plan configs/fourcastnet3.py:paper   # 709.9 M parameters: shapes only

Level 1 of FourCastNet 3: the networks of `spherical_noise.py`, trained longer and run
on to day 240; a step with its latitudes split over the devices that there are; and a
step at full size by tracing.
"""

import importlib.util
import pathlib

_spec = importlib.util.spec_from_file_location(
    "spherical_noise_config", pathlib.Path(__file__).with_name("spherical_noise.py")
)
_base = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_base)


def get_config(preset="small"):  # smoke | small | claims | paper
    config = _base.get_config(preset)
    config.experiment = "fourcastnet3"
    config.title = "FourCastNet 3, small: calibration and spectra of a spherical net"
    if preset == "paper":
        return config
    config.scale = "toy"
    if preset == "small":
        config.num_members = 4
        config.stages = ((300, 4e-3, "almost_fair", 1),)
    if preset != "smoke":
        config.test.long_days = (30, 100, 240)
    return config
