"""Noise model, critics and observation normalizer: the components a policy folder holds."""
