"""One file per algorithm: its losses, top-down, and `update(batch) -> metrics`."""
