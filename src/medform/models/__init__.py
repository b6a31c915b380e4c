"""Towers, pools and heads."""
