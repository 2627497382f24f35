"""Benchmarks of waiting, importing and moving files, compared with other providers; `make bench` runs them.

They print figures and targets, and never fail because of a figure.
"""
