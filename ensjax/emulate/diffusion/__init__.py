"""Denoisers, noise schedules, losses, samplers and likelihoods of diffusion models."""
