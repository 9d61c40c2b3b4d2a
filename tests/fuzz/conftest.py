"""The warmed process, and the summary by format."""

import collections

import pytest
from fuzz.harness import Worker


@pytest.fixture(scope="session")
def worker(tmp_path_factory):
    worker = Worker(tmp_path_factory.mktemp("worker"))
    yield worker
    worker.close()


def pytest_terminal_summary(terminalreporter):
    verdicts = collections.defaultdict(collections.Counter)
    for reports in terminalreporter.stats.values():
        for report in reports:
            properties = getattr(report, "user_properties", ())
            if getattr(report, "when", "") == "call" and (
                last := [value for key, value in properties if key == "fuzz"]
            ):
                verdicts[last[-1][0]][last[-1][1]] += 1
    if not verdicts:
        return
    terminalreporter.section("malformed inputs")
    verdicts["all"] = sum(verdicts.values(), collections.Counter())
    terminalreporter.line(f"{'':16}{'refused':>9}{'accepted':>9}{'failed':>9}")
    for name, counts in verdicts.items():
        terminalreporter.line(
            f"{name:16}" + "".join(f"{counts[kind]:9,}" for kind in ("refused", "accepted", "failed"))
        )
