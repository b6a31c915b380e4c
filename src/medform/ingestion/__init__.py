"""Files to cohort: discovery, readers, verdicts."""
