"""Subcommands of `spi` that have a module of their own; each imports what it needs only when it runs."""
