"""Figures of merit and small linear algebra: pure numpy, used by everybody."""
