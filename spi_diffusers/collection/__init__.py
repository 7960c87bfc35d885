"""Collecting datasets in the simulators: behaviour policies of many trade-offs, thinned into one dataset."""
