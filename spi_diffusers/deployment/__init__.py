"""Policies as ONNX graphs with a contract, which `runtime.py` acts by; and students of one pass."""
