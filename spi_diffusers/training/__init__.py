"""Training: the data's sampler, the loop, checkpoints, the evaluation critic, and the policy folder."""
