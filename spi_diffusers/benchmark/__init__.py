"""The paper's experiments as a grid of cells: run them, and make tables and figures from their results."""
