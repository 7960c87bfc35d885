"""Simulators behind one `make_env(task)`."""
