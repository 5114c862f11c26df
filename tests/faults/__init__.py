"""Faults, damage, kills, races and bombs. ``make test-reliability``, which CI runs, takes a sample of each test; ``make test-faults`` runs all of it."""
