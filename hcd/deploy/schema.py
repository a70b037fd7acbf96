"""What the API answers, as /openapi.json describes it."""

from typing import Any

from pydantic import BaseModel

PNG: dict = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
REASONS = {
    400: "The form holds no files, or cannot be read",
    403: "Asked under a name that is not the server's, or by another page",
    404: "There is no such example",
    413: "Too many files, or too many bytes",
    415: "The body is no multipart form",
    422: "A value of the question, or a file, cannot be used",
    503: "The server was stopped before it had answered",
}


class Refusal(BaseModel):
    """Why a question has no answer, in one sentence."""

    error: str


class Answer(BaseModel):
    """What the model says of one file: label "" and no probability where `error` says why not."""

    name: str
    label: str
    probability: float | None
    error: str
    picture: str = ""


class Answers(BaseModel):
    """An answer for each file, in order."""

    answers: list[Answer]


def replies(*statuses: int, ok: dict[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    """Describe what a route answers: `ok`, and each status that turns a question down."""
    found: dict = {200: {"description": "The answer", **ok}} if ok else {}
    for status in sorted({*statuses, 403, 503}):  # those two may come from any route
        found[status] = {"model": Refusal, "description": REASONS[status]}
    return found
