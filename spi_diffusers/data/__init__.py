"""Tasks, and transitions from files or the Hub as one contiguous `TransitionDataset`."""
