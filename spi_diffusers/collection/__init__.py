"""Collecting datasets in the simulators: behavior policies of many trade-offs, thinned into one dataset."""
