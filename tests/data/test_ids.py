import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from prunefuse_ray.data import ids as module
from prunefuse_ray.data.ids import IdSet, id_hashes

NUMBERS = np.random.default_rng(0).integers(-(2**62), 2**62, 500)
KINDS = {
    "numbers": pa.array(NUMBERS),
    "text": pa.array([f"cats/ä {n}.png" for n in NUMBERS]),
    "twice": pa.array([f"{n % 50}" for n in NUMBERS]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alike", [False, True], ids=["", "hashes alike"])
def test_ids_are_found_where_arrow_finds_them(kind, alike, monkeypatch):
    if alike:  # of 500 ids many have the same one of 64 hashes, and what is looked up has it, too
        monkeypatch.setattr(module, "id_hashes", lambda ids: id_hashes(ids) % np.uint64(64))
    everything = KINDS[kind]
    held = everything.take(pa.array(np.random.default_rng(1).permutation(500)[:200]))
    asked = pa.chunked_array([everything[:300], everything[250:], everything[:0]])
    wanted = pc.fill_null(pc.index_in(asked, value_set=held), -1).to_pylist()
    found = IdSet.of(held).find(asked)
    assert found.tolist() == wanted
    assert 0 < sum(n >= 0 for n in wanted) < len(wanted)
    assert IdSet.of(held).holds(asked).tolist() == [n >= 0 for n in wanted]


def test_another_width_of_numbers_and_nothing_at_all():
    held = IdSet.of(pa.array([7, 5], pa.int64()))
    assert held.find(pa.array([5, 6, 7], pa.int32())).tolist() == [1, -1, 0]
    assert IdSet.of(pa.array([], pa.string())).holds(pa.array(["a"])).tolist() == [False]
    assert held.holds(pa.chunked_array([], pa.int64())).tolist() == []
    assert IdSet.of(held) is held
