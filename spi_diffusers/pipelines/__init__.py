"""The policy as a diffusers pipeline: candidates, extraction, output."""
