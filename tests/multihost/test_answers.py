"""The same requests, scored by one process on one device and by two on eight."""

import json

import numpy as np
import pytest

from rfq import sharding
from tests.multihost import processes, scoring_worker
from tests.tasks import scored

pytestmark = [pytest.mark.slow, pytest.mark.mesh]


def test_two_processes_score_what_one_does(one_device_env, tmp_path):
    spans = scored.encoded(scored.ASKED)
    expected = scored.answered(spans, sharding.make_mesh(1))
    worker = scoring_worker.__name__
    processes.run(worker, str(tmp_path), env=one_device_env, num_devices=4)
    told = [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1)]
    assert told[0] == told[1]
    found = np.array(told[0]["loglikelihood"])
    # Sums of at most 64 float32 numbers of size 10.
    np.testing.assert_allclose(found, expected.loglikelihood, atol=1e-3)
    assert told[0]["is_greedy"] == expected.is_greedy.tolist()
    assert scored.num_flips(scored.ASKED, found, expected.loglikelihood) == 0
    rows = [path.name for path in tmp_path.glob("rows-*")]
    assert rows == ["rows-0.jsonl"]
