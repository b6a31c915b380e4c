"""Recipes, and the catalog where strings meet classes."""
