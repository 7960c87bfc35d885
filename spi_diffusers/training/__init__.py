"""Training: the data's sampler, the loop, checkpoints, calibration, and the policy folder."""
