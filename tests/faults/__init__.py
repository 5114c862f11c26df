"""Faults, damage, kills, races and bombs. CI runs a sample of each test; ``make test-faults`` runs all of it."""
