"""Measurements: `python bench/run.py JOB`, one module per job, results in bench/results."""
