"""Cohort to blocks of tensors, one modality per file."""
