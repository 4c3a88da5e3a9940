"""Sources of samples as a configuration sees them: validation, defaults, help and documents follow from the entries."""

import pytest

from prunefuse_ray.config import Pool
from prunefuse_ray.config.files import config_from_tree
from prunefuse_ray.config.sources import POOL_SOURCES, SOURCE_FIELDS, PoolSource
from prunefuse_ray.errors import ConfigError

VALUES = {"path": "p", "test_path": "t"}
GIVEN = VALUES | {
    "validation_path": "v", "mask_folder": "m", "id_column": None, "image_column": "png", "text_column": "text",
    "label_column": "y",
    "vector_column": "embedding", "group_column": "site", "sample_key": "last_dot",
    "version": 3, "test_version": "gold", "validation_version": 4,
}  # fmt: skip


def fields(name, **more):
    source = POOL_SOURCES[name]
    one = {f: GIVEN[f] for f in source.needs_one[:1] if not more.keys() & set(source.needs_one)}
    return {"source": name, "classes": 2, **{f: VALUES[f] for f in source.needs}, **one, **more}


@pytest.mark.parametrize("name", POOL_SOURCES)
@pytest.mark.parametrize("field", SOURCE_FIELDS)
def test_a_source_takes_the_fields_that_it_declares_and_no_others(name, field):
    tree = fields(name, **{field: GIVEN[field]})
    if field == "validation_version" and "validation_path" in POOL_SOURCES[name].fields:
        tree["validation_path"] = "v"
    if field in POOL_SOURCES[name].fields:
        assert getattr(Pool.model_validate(tree), field) == GIVEN[field]
    else:
        with pytest.raises(ValueError, match=rf"{field} is for pool\.source .*, not '{name}': leave it out"):
            Pool.model_validate(tree)


@pytest.mark.parametrize("name", POOL_SOURCES)
def test_what_a_source_needs_has_to_be_given(name):
    for field in POOL_SOURCES[name].needs:
        with pytest.raises(ValueError, match=f"{field} is missing: source '{name}' needs it; set pool.{field}"):
            Pool.model_validate({k: v for k, v in fields(name).items() if k != field})


@pytest.mark.parametrize("name", POOL_SOURCES)
def test_a_sources_own_defaults_hold_unless_a_value_is_given(name):
    for field, default in POOL_SOURCES[name].defaults.items():
        assert getattr(Pool.model_validate(fields(name)), field) == default
    assert Pool.model_validate(fields(name, channels=3)).channels == 3


def test_a_source_that_is_none_is_said_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"pool\.source: .*'parqet' \(did you mean 'parquet'\?\); known: digits, "):
        config_from_tree({"pool": {"source": "parqet"}})
    with pytest.raises(ConfigError, match=r"pool\.source: .*cannot import 'nowhere:X'"):
        config_from_tree({"pool": {"source": "nowhere:X"}})
    with pytest.raises(ConfigError, match=r"pool\.source: 3 is not valid"):
        config_from_tree({"pool": {"source": 3}})


def test_a_source_cannot_take_what_pool_does_not_have():
    with pytest.raises(ConfigError, match=r"takes 'paths', which is none of the fields path, test_path"):
        PoolSource(help="", ids="", labels="", reader="a:B", fields=("paths",))
