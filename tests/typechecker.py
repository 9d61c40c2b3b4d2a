"""Checks signatures in tests: beartype, where an int may stand for a float (PEP 484)."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
