"""Vectors of texts: 100 numbers each, latent semantics of the docstrings that the tutorial on texts collects.

`python -m tests.support.embeddings FOLDER` reads FOLDER/pool.csv and test.csv, and writes FOLDER/embeddings.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

CLASSES = ["numpy", "pandas", "sklearn", "torch"]


def write_embeddings(where: Path, size: int = 100) -> None:
    """Parquet files (id, embedding float32, label); what is learned is learned from the pool alone."""
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, min_df=2), TruncatedSVD(size, random_state=0))
    for part in ("pool", "test"):
        with open(where / f"{part}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        texts = [row["text"] for row in rows]
        vectors = (model.fit_transform(texts) if part == "pool" else model.transform(texts)).astype(np.float32)
        (where / "embeddings" / part).mkdir(parents=True)
        columns = {
            "id": [row["id"] for row in rows],
            "embedding": list(vectors),
            "label": [CLASSES.index(row["label"]) for row in rows],
        }
        pq.write_table(pa.table(columns), where / "embeddings" / part / "vectors.parquet")


if __name__ == "__main__":
    write_embeddings(Path(sys.argv[1]))
