"""People who give labels, behind one small interface: ask for a round's samples, collect what was answered."""

from prunefuse_ray.annotation.files import ON_PAGE, Files
from prunefuse_ray.annotation.label_studio import connect
from prunefuse_ray.annotation.request import Annotator, Answers, Away, Request
from prunefuse_ray.annotation.votes import Refuse, Take, Wait, decide, majority, named
from prunefuse_ray.schemas import agreement_schema, annotations_schema, request_schema

__all__ = [
    "ON_PAGE",
    "Annotator",
    "Answers",
    "Away",
    "Files",
    "Refuse",
    "Request",
    "Take",
    "Wait",
    "agreement_schema",
    "annotations_schema",
    "connect",
    "decide",
    "majority",
    "named",
    "request_schema",
]
