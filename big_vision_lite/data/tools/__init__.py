"""Preparing and inspecting datasets."""
