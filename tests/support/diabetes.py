"""scikit-learn's diabetes data as CSV files: ten figures of a patient, and how far the disease has come a year later.

`python -m tests.support.diabetes FOLDER` writes FOLDER/pool.csv (331 patients) and FOLDER/test.csv (111).
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes


def write_diabetes(where: Path) -> None:
    where.mkdir(parents=True, exist_ok=True)
    x_ND, y_N = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y_N))
    for name, rows in (("test", order[::4]), ("pool", np.delete(order, np.s_[::4]))):
        lines = [f"{i},{' '.join(f'{v:.6g}' for v in x_ND[i])},{y_N[i]:g}" for i in rows]
        (where / f"{name}.csv").write_text("\n".join(["id,figures,progression", *lines, ""]))


if __name__ == "__main__":
    write_diabetes(Path(sys.argv[1]))
