"""A short soak; CONTRIBUTING.md and docs/faults.md say how to run a long one."""

import pytest
import soak


@pytest.mark.soak
def test_kills_make_no_difference():
    assert soak.main(["--minutes=4"]) == 0
