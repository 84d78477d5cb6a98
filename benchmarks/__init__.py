"""Benchmarks: gradtx beside optax, torch and a C loop that reads and writes every number once.

``python -m benchmarks`` runs them; README.md says what each one is, and what came out.
"""
