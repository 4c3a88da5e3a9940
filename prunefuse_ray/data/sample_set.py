"""One of the sets of samples that a configuration names, as its source looks at it."""

from __future__ import annotations

from dataclasses import dataclass

from prunefuse_ray import config as cfg
from prunefuse_ray.data.paths import as_list, root_of
from prunefuse_ray.storage import Place
from prunefuse_ray.tasks import TASKS, Task
from prunefuse_ray.tasks.classification import CLASSIFICATION


@dataclass(frozen=True)
class SampleSet:
    """The samples that one setting of `pool` names: the pool itself, the test set or the validation set."""

    pool: cfg.Pool
    setting: str = "path"
    labeled: bool = True
    """Whether every sample has a label here."""
    task_name: str = CLASSIFICATION.name
    """`tasks.TASKS`: what labels are."""

    @property
    def field(self) -> str:
        """The setting as messages call it."""
        return f"pool.{self.setting}"

    @property
    def task(self) -> Task:
        return TASKS[self.task_name]

    @property
    def paths(self) -> str | list[str] | None:
        return getattr(self.pool, self.setting)

    @property
    def version_setting(self) -> str:
        """The setting that pins the version of the set's table."""
        return f"{self.setting.removesuffix('path')}version"

    @property
    def version(self) -> int | str | None:
        return getattr(self.pool, self.version_setting)

    @property
    def places(self) -> tuple[Place, ...]:
        """The directories that names of files are relative to, one for every path."""
        return tuple(root_of(Place.at(path)) for path in as_list(self.paths))

    @property
    def sample_column(self) -> str:
        return self.pool.text_column or self.pool.vector_column or self.pool.image_column

    @property
    def label_column(self) -> str | tuple[str, ...] | None:
        found = self.pool.label_column if self.labeled else None
        return tuple(found) if isinstance(found, list) else found

    @property
    def sample_setting(self) -> str:
        """The setting that names the column of samples."""
        return "text_column" if self.text else "vector_column" if self.pool.vector_column else "image_column"

    @property
    def text(self) -> bool:
        """Whether the samples are texts."""
        return self.pool.text_column is not None
