"""Assembling and publishing a policy folder."""
