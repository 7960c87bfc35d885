"""Rollouts in the simulator, metrics, results files, plots and video."""
