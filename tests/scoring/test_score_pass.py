"""A scoring pass as a whole: what it leaves where it is not the pool that it was meant for."""

import pyarrow as pa
import pytest

from prunefuse_ray.config.scoring import Scoring
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.scoring.score_pass import ScorePass, score
from prunefuse_ray.storage import Place
from tests.scoring.test_score_pool import HERE, JOB, ROWS, network, source

assert network  # a fixture, as source is
assert source


def test_a_pass_over_another_number_of_rows_is_refused_and_removed(source, network, tmp_path):
    root = Place.at(str(tmp_path / "run"))
    what = ScorePass(
        root=root,
        record=Ledger(root).write_file,
        source=source,
        rows=ROWS + 1,
        exclude=pa.array([], pa.int64()),
        network=network,
        macs=1,
        classes=10,
        members=1,
        out=root / "scores",
        checkpoint=root / "checkpoint",
    )
    with pytest.raises(ScoreError, match=rf"{ROWS} rows were scored of {ROWS + 1}"):
        score(what, Scoring(), JOB, HERE, (root / "scores").delete)
    assert (root / "scores").files() == []
