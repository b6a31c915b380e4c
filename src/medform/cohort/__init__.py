"""Patients on disk: cohort file, columns, store, splits, quarantine."""
