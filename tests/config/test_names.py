"""Fields that name an entry of a registry."""

from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from prunefuse_ray.config.names import Named
from prunefuse_ray.registry import Registry

COLORS = Registry(
    "color", "builtins:str", "prunefuse_ray.test_colors", {"red": "tests.config.test_names:RED", "lost": "nowhere:X"}
)
RED = "#f00"
NAMED = Named(registry=COLORS, describe=lambda color: f"as {color}", besides={"any": "whichever is there"})


class Paint(BaseModel):
    color: Annotated[str, NAMED] = "any"


def test_entries_references_and_words_besides_are_taken_and_nothing_else():
    assert [Paint(color=c).color for c in ("red", "any", "tests.config.test_names:RED")] == [
        "red",
        "any",
        "tests.config.test_names:RED",
    ]
    with pytest.raises(ValidationError, match=r"unknown color 'rad' \(did you mean 'red'\?\); known: any, red, lost"):
        Paint(color="rad")
    with pytest.raises(ValidationError, match="valid string"):
        Paint(color=3)
    with pytest.raises(ValidationError, match="cannot import 'nowhere:X'"):
        Paint(color="lost")


def test_help_has_a_line_for_each_even_for_one_that_cannot_be_used():
    any_, red, lost = NAMED.help()
    assert (any_, red) == ("any: whichever is there", "red: as #f00")
    assert lost.startswith("lost: cannot be used: color 'lost': cannot import 'nowhere:X'")
