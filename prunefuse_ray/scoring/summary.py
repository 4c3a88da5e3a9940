"""What one pass over score files tells: counts, rejected samples, a histogram."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunefuse_ray.data.sample_format import KINDS
from prunefuse_ray.distributed.remote import over_files
from prunefuse_ray.errors import ScoreError
from prunefuse_ray.schemas import MATCHES
from prunefuse_ray.storage import Place

HISTOGRAM_BINS = 64


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What one pass over score files tells."""

    rows: int
    scored: int
    rejected: pa.Table
    """(id, reason)"""
    histogram: dict[str, list[float]]
    """edges and counts of the scores"""
    conversions: dict[str, int]
    """Kind -> samples, the most frequent first."""
    held_out: pa.Table
    """(id, row): samples that have the content of a row of the held-out sets, as far as they were compared."""


def summarize(files: list[str], out: Place, top: float) -> ScoreSummary:
    """Count, check and histogram the scores in `files`, in tasks where they are large.

    Args:
        top: the largest score that the strategy can give; the histogram spans [0, top].

    Raises:
        ScoreError: scores that are not finite, with the ids.
    """
    parts = list(over_files(_summarize, files, out, top))
    bad = [i for p in parts for i in p["bad"]]
    if bad:
        raise ScoreError(
            f"scores (or features) are not finite for {sum(p['bad_count'] for p in parts)} samples, e.g. ids "
            f"{', '.join(map(repr, bad[:5]))}: the network diverged; look at these samples, or lower training.lr in "
            "a run of another run.name"
        )
    counts = np.sum([p["counts"] for p in parts], axis=0) if parts else np.zeros(HISTOGRAM_BINS)
    rejected = pa.concat_tables([p["rejected"] for p in parts]) if parts else _rejections([], [])
    return ScoreSummary(
        rows=sum(p["rows"] for p in parts),
        scored=sum(p["rows"] for p in parts) - rejected.num_rows,
        rejected=rejected,
        histogram={"edges": np.linspace(0, top, HISTOGRAM_BINS + 1).tolist(), "counts": counts.tolist()},
        conversions=dict(sum((p["conversions"] for p in parts), Counter[str]()).most_common()),
        held_out=pa.concat_tables([MATCHES.empty_table(), *(p["held_out"] for p in parts)]),
    )


def _summarize(files: list[str], out: Place, top: float) -> dict:
    rows, bad_count, bad, counts = 0, 0, [], np.zeros(HISTOGRAM_BINS, np.int64)
    ids, reasons, conversions, matches = [], [], Counter[str](), [MATCHES.empty_table()]
    for file in files:
        with out.fs.open_input_file(file) as stream_:
            scores_ = pq.ParquetFile(stream_, page_checksum_verification=True)
            told = [c for c in ("converted", "held_out") if c in scores_.schema_arrow.names]  # not of earlier versions
            for batch in scores_.iter_batches(columns=["id", "score", "rejected", *told]):
                table = pa.Table.from_batches([batch])
                rows += table.num_rows
                if "converted" in told:
                    for found in pc.value_counts(table["converted"].drop_null()).to_pylist():
                        conversions.update(dict.fromkeys(found["values"].split(KINDS), found["counts"]))
                if "held_out" in told:
                    known = table.filter(pc.is_valid(table["held_out"]))
                    matches.append(pa.table([known["id"].cast(pa.string()), known["held_out"]], schema=MATCHES))
                refused = table.filter(pc.is_valid(table["rejected"]))
                ids += refused["id"].to_pylist()
                reasons += refused["rejected"].to_pylist()
                kept = table.filter(pc.is_null(table["rejected"]))
                scores = kept["score"].to_numpy()
                finite = np.isfinite(scores)
                if not finite.all():
                    bad_count += int((~finite).sum())
                    bad += kept["id"].filter(pa.array(~finite)).to_pylist()[:5]
                counts += np.histogram(np.clip(scores[finite], 0, top), HISTOGRAM_BINS, (0, top))[0]
    return {
        "rows": rows,
        "bad_count": bad_count,
        "bad": bad,
        "counts": counts,
        "rejected": _rejections(ids, reasons),
        "conversions": conversions,
        "held_out": pa.concat_tables(matches),
    }


def _rejections(ids: list, reasons: list) -> pa.Table:
    return pa.table({"id": pa.array([str(i) for i in ids], pa.string()), "reason": pa.array(reasons, pa.string())})
