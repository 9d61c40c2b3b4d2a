"""The stream of a mixture: dealt out exactly, each stratum shuffled by itself, any part of it alone."""

import grain
import numpy as np
import pytest

from big_vision_lite.data.mixing import MixedStream

OF = np.random.default_rng(0).permutation([0] * 7 + [1] * 40 + [2] * 1 + [3] * 12)


def one_by_one(of, shares, seed, count) -> list[int]:
    """The same by adding up: a stratum has a position whenever its sum of shares passes a whole number."""
    left = [sum(shares[k:]) for k in range(len(shares))]
    steps = [round(share / rest * 2**30) for share, rest in zip(shares, left, strict=True)]
    seeds = [int(np.random.SeedSequence((seed, k, 2)).generate_state(1)[0]) for k in range(len(shares))]
    members = [np.flatnonzero(of == k) for k in range(len(shares))]
    streams = [iter(grain.MapDataset.range(len(m)).seed(s).shuffle().repeat())
               for m, s in zip(members, seeds, strict=True)]
    sums, indices = [0] * len(shares), []
    for _ in range(count):
        for k, step in enumerate(steps):
            sums[k] += step
            if sums[k] >= 2**30:
                sums[k] -= 2**30
                indices.append(int(members[k][next(streams[k])]))
                break
    return indices


@pytest.mark.parametrize("shares", [(1, 1, 1, 1), (0.7, 0.2, 0.05, 0.05), (1, 1000, 1, 10), (0.1, 0.1, 0.79, 0.01)])
def test_the_stream_is_that_of_adding_up_shares(shares):
    stream, expected = MixedStream(OF, shares, seed=5), one_by_one(OF, shares, 5, 3000)
    assert stream(range(3000)).tolist() == expected
    for start, stop in ((0, 0), (17, 18), (1234, 1500), (2999, 3000)):  # any part of it alone
        assert stream(range(start, stop)).tolist() == expected[start:stop]
    assert MixedStream(OF, shares, seed=6)(range(3000)).tolist() != expected


def test_shares_hold_from_the_start_and_passes_are_complete():
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    indices = MixedStream(OF, shares.tolist(), seed=1)(range(4000))
    seen = np.cumsum(np.eye(4)[OF[indices]], 0)
    assert (np.abs(seen - np.arange(1, 4001)[:, None] * shares) < 2).all()
    for stratum, size in ((0, 7), (1, 40), (3, 12)):
        own = indices[OF[indices] == stratum]
        passes = own[: len(own) // size * size].reshape(-1, size)
        assert (np.sort(passes, 1) == np.flatnonzero(stratum == OF)).all() and not (passes[0] == passes[1]).all()


def test_positions_far_into_a_run():
    stream, far = MixedStream(OF, (1.0, 2.0, 0.0, 0.7), seed=0), 3 * 10**12
    part = stream(range(far, far + 500))
    assert set(OF[part].tolist()) == {0, 1, 3}  # a stratum without a share has none
    counts = np.bincount(OF[part], minlength=4) / 500
    np.testing.assert_allclose(counts, np.array([1, 2, 0, 0.7]) / 3.7, atol=0.005)
    assert stream(range(far + 100, far + 200)).tolist() == part[100:200].tolist()
