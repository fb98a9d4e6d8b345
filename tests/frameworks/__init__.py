"""Modules for frameworks: each file is skipped where its framework is missing."""
