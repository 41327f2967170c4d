"""The paper's questions: one package each, `python -m analyses.NAME`."""
