"""The commands that look before a run does: ``bvl doctor`` and ``bvl bench``."""

from __future__ import annotations
