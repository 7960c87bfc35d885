"""Configuration of training: dataclasses, presets and the layers between them; nothing here imports torch."""
