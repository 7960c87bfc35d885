"""Policies as ONNX graphs with a contract, checked against the pipeline. `runtime.py` acts by them."""
