"""The files of one request, held in memory alone: nothing that is uploaded comes to a disk."""

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .settings import Limits


@dataclass(frozen=True)
class Upload:
    """One file: the `name` that the client gave it, and its `content`."""

    name: str
    content: bytes


class Named(bytes):
    """The bytes of a file that are called by a name, see `export.prediction.name_of`."""

    filename = ""


def named(upload: Upload) -> Named:
    """Return an upload as an image that `predict_images` takes and calls by the client's name."""
    content = Named(upload.content)
    content.filename = upload.name
    return content


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the files of a multipart request.

    Raises:
        HTTPException: 400 for no files, 413 for too many or too much, 415 for no multipart form.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(
            415, "send files as multipart/form-data, as `curl -F files=@a.tif` does"
        )
    too_much = HTTPException(
        413,
        f"a request holds at most {limits.bytes:,} bytes and {limits.files} files; send the rest in"
        " another one",
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.bytes:
        raise too_much

    async def counted():
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > limits.bytes:  # it may say nothing of its length, or less
                raise too_much
            yield chunk

    parser = MultiPartParser(request.headers, counted(), max_files=limits.files, max_fields=16)
    parser.spool_max_size = limits.bytes + 1  # above it a file would go to the disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise too_much from error
        raise HTTPException(400, f"the form cannot be read: {error.message}") from error
    except ClientDisconnect as error:  # nobody reads this, and no log either
        raise HTTPException(400, "the client hung up before the form had ended") from error
    files = [item for _, item in form.multi_items() if not isinstance(item, str)]
    uploads = [Upload(file.filename or "", file.file.read()) for file in files]
    await form.close()
    if not uploads:
        raise HTTPException(400, "the form holds no files; send at least one")
    return uploads
