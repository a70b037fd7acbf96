"""One page and one JSON API that answer with a model."""

import asyncio
import base64
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .. import __version__
from ..dataset.sample import draw_patch
from ..errors import InputError
from ..export.answer import TorchModel
from ..export.bundle import Bundle
from ..export.explain import explain_image
from ..export.prediction import predict_images
from .settings import HEADERS, LOCAL, Limits

PAGE = Path(__file__).with_name("page")
EXAMPLES = 6  # drawn patches, half of them with a tumour


def make_app(
    bundle: Bundle,
    worker: Executor,
    hosts: Sequence[str] = LOCAL,
    device: Any = None,
    fast: bool = False,
    limits: Limits = Limits(),
) -> Any:
    """Build the server's application.

    Args:
        bundle: see `load_bundle`. worker: computes one batch after the other, for each takes all
            cores. hosts: names under which it may be asked for. device, fast: see
            `predict_images`. limits: of one request.
    Returns:
        FastAPI application.
    """
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.staticfiles import StaticFiles

    from .guard import Guard
    from .schema import PNG, Answers, replies
    from .uploads import named, read_uploads

    model = TorchModel(bundle, device, fast=fast)
    # its own pages of documentation load scripts from elsewhere; /openapi.json stays
    app = FastAPI(title="hcd", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, hosts=list(hosts), headers=HEADERS)

    async def compute(function, *args):
        return await asyncio.wrap_future(worker.submit(function, *args))

    @app.exception_handler(HTTPException)
    async def refuse(request, error):
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def correct(request, error):
        found = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        return JSONResponse({"error": f"{found}; see /openapi.json"}, 422)

    @app.exception_handler(InputError)
    async def tell(request, error):
        return JSONResponse({"error": str(error)}, 422)

    @app.get("/health", responses=replies())
    async def health() -> dict:
        """Say that the server is there, and with which model."""
        of_model = {name: bundle.card[name] for name in ("weights_sha256", "created")}
        return {"status": "ok", "version": __version__, "arch": bundle.recipe.arch, **of_model}

    @app.get("/model", responses=replies())
    async def card() -> dict:
        """Return the model's card, and how much a request may hold."""
        most = {"most_files": limits.files, "most_bytes": limits.bytes}
        return {**bundle.card, **most, "examples": EXAMPLES}

    of_files = replies(400, 413, 415, 422, ok={"model": Answers})

    @app.post("/predict", openapi_extra=_form("files", many=True), responses=of_files)
    async def predict(request: Request, pictures: bool = False) -> dict:
        """Answer every file, in order: name, label, tumour probability or null, and the error of a
        file that is no patch. With `pictures` each patch comes back as a PNG in base64."""
        uploads = await read_uploads(request, limits)
        return {"answers": await compute(_answers, model, list(map(named, uploads)), pictures)}

    title = {"headers": {"Heatmap-Title": {"schema": {"type": "string"}}}}
    of_one = replies(400, 413, 415, 422, ok={**PNG, **title})

    @app.post("/explain", openapi_extra=_form("file"), response_class=Response, responses=of_one)
    async def explain(request: Request):
        """Return a PNG of where the model looks in one patch; the header Heatmap-Title says what it
        is."""
        uploads = await read_uploads(request, limits)
        found = await compute(explain_image, bundle, named(uploads[0]))
        return Response(found.png(), media_type="image/png", headers={"Heatmap-Title": found.title})

    drawn = replies(404, 422, ok=PNG)

    @app.get("/examples/{number}", response_class=Response, responses=drawn)
    async def example(number: int):
        """Return a patch that was drawn, not scanned."""
        if not 0 <= number < EXAMPLES:
            raise HTTPException(404, f"example {number} is not there; ask for 0 to {EXAMPLES - 1}")
        patch = draw_patch(number % 2, np.random.default_rng(number))
        return Response(_png(patch), media_type="image/png")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _form(name, many=False):
    """Describe a form of one file or of many for /openapi.json."""
    file: dict = {"type": "string", "format": "binary"}
    schema = {"type": "object", "required": [name], "properties": {name: file}}
    if many:
        schema["properties"] = {name: {"type": "array", "items": file}}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def _answers(model, images, pictures):
    """Return what JSON can hold of the predictions of some images."""
    if pictures:
        model = _Keeping(model)
    answers = []
    for found in predict_images(model, images, on_error="report"):
        answer: dict = {"name": found.path, "label": found.label, "error": found.error}
        answer["probability"] = None if found.error else found.probability
        if pictures and not found.error:
            answer["picture"] = base64.b64encode(_png(model.patches.popleft())).decode()
        answers.append(answer)
    return answers


class _Keeping:
    """A model that keeps the patches which it answers, in order, so that what shows them need not
    decode their files again."""

    def __init__(self, model):
        self.model, self.original_size = model, model.original_size
        self.patches: deque = deque()

    def probabilities(self, patches):
        self.patches.extend(patches)
        return self.model.probabilities(patches)


def _png(patch):
    return cv2.imencode(".png", patch[..., ::-1])[1].tobytes()
