"""Emulators of physical ensembles: simulators, archives, diffusion and its seeds."""
