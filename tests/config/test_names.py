"""Fields that name an entry of a registry."""

from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from prunefuse_ray.config.names import Named
from prunefuse_ray.registry import Registry

COLOURS = Registry(
    "colour", "builtins:str", "prunefuse_ray.test_colours", {"red": "tests.config.test_names:RED", "lost": "nowhere:X"}
)
RED = "#f00"
NAMED = Named(registry=COLOURS, describe=lambda colour: f"as {colour}", besides={"any": "whichever is there"})


class Paint(BaseModel):
    colour: Annotated[str, NAMED] = "any"


def test_entries_references_and_words_besides_are_taken_and_nothing_else():
    assert [Paint(colour=c).colour for c in ("red", "any", "tests.config.test_names:RED")] == [
        "red",
        "any",
        "tests.config.test_names:RED",
    ]
    with pytest.raises(ValidationError, match=r"unknown colour 'rad' \(did you mean 'red'\?\); known: any, red, lost"):
        Paint(colour="rad")
    with pytest.raises(ValidationError, match="valid string"):
        Paint(colour=3)
    with pytest.raises(ValidationError, match="cannot import 'nowhere:X'"):
        Paint(colour="lost")


def test_help_has_a_line_for_each_even_for_one_that_cannot_be_used():
    any_, red, lost = NAMED.help()
    assert (any_, red) == ("any: whichever is there", "red: as #f00")
    assert lost.startswith("lost: cannot be used: colour 'lost': cannot import 'nowhere:X'")
