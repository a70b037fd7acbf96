"""One damaged input, handed to the public functions; what comes of it is judged by another reader
than ours."""

import ast
import contextlib
import csv
import io
import json
import random
import re
import warnings
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from papermill.translators import PythonTranslator
from PIL import Image

import hcd
from hcd import cli
from hcd.dataset.tables import read_table
from hcd.engine.compat import load_tensors
from hcd.engine.saving import Learner
from hcd.runs.record import resume_record

from . import mutate
from .seeds import make_model, make_record, seed_images, seed_saves, small_model

REFUSALS = (ValueError, TypeError, OSError)  # FileNotFoundError is an OSError


class Wrong(Exception):
    """Neither a clear error nor a correct read."""


def require(ok, text):
    if not ok:
        raise Wrong(text)


class Cases:
    """The files that are damaged, and how each kind is damaged and tried."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.data = hcd.make_sample(self.folder / "data", train=8, test=2, rng_seed=0).root
        self.patch = next(iter(sorted(self.data.glob("train/*.tif"))))
        self.rgb = hcd.read_image(self.patch)
        self.images = seed_images(self.rgb)
        self.tables = {path.name: path.read_bytes() for path in sorted(self.data.glob("*.csv"))}
        self.model = make_model(self.folder / "model")
        self.card, self.weights = (
            (self.model / name).read_bytes() for name in ("card.json", "model.safetensors")
        )
        self.bundle = hcd.load_bundle(self.model)
        self.saves = seed_saves()
        self.record = make_record(self.folder / "run")
        self.whole = {
            path: path.read_bytes()
            for path in (self.patch, *self.data.glob("*.csv"), *self.model.iterdir())
        }

    def run(self, kind, rng_seed, number):
        """Try one case; return "read" or "refused", or raise Wrong. The same three arguments make
        the same case."""
        rng = random.Random(f"{rng_seed} {kind} {number}")
        np.random.seed(0), torch.manual_seed(0), random.seed(0)
        for path, content in self.whole.items():  # what an earlier case has damaged
            path.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = getattr(self, f"try_{kind}")(rng)
        require(not caught, f"warns: {caught[0].message if caught else ''}")
        return outcome

    def try_tiff(self, rng):
        content = rng.choice(self.images["tiff"])
        return self._image(mutate.mutate_tiff(rng, content, self.images["tiff"]), rng)

    def try_image(self, rng):
        kind = rng.choice(["png", "png", "jpeg", "jpeg", "other"])
        damage = {
            "png": mutate.mutate_png,
            "jpeg": mutate.mutate_jpeg,
            "other": mutate.mutate_bytes,
        }[kind]
        return self._image(
            damage(rng, rng.choice(self.images[kind]), self.images["png"] + self.images["jpeg"]),
            rng,
        )

    def _image(self, content, rng):
        path = self.patch
        path.write_bytes(content)
        entry = rng.random()
        if entry < 0.02:
            return check_main(["predict", str(self.model), str(path)], path)
        if entry < 0.05:
            return check_main(["check", str(self.data), *rng.choice([[], ["--json"]])], self.data)
        outcome, image = attempt(path, hcd.read_image, path)
        if outcome == "read":
            require(
                np.array_equal(image, self.rgb) or same_image(image, content),
                "read, but not as Pillow reads it",
            )
        again, crop = attempt(path, hcd.read_cropped_image, path)
        require(
            again == "refused"
            or (
                outcome == "read"
                and crop.shape == (90, 90, 3)
                and crop.dtype == np.float32
                and crop.min() >= 0
                and crop.max() <= 1
            ),
            "a crop that is none",
        )
        require(
            again == "read" or outcome == "refused" or image.shape != (96, 96, 3),
            "a patch without a crop",
        )
        if entry < 0.1:
            last, prediction = attempt(path, hcd.predict_image, self.bundle, path)
            require(
                last == again and (last == "refused" or 0 <= prediction.probability <= 1),
                "a prediction that is none",
            )
        return outcome

    def try_csv(self, rng):
        name = rng.choice(sorted(self.tables))
        path, content = (
            self.data / name,
            mutate.mutate_csv(rng, self.tables[name], list(self.tables.values())),
        )
        path.write_bytes(content)
        if rng.random() < 0.1:
            return check_main(["check", str(self.data), *rng.choice([[], ["--json"]])], self.data)
        attempt(self.data, hcd.check_dataset, self.data, hcd.Recipe(), False, must_read=True)
        outcome, table = attempt(path, read_table, path)
        if outcome == "read":
            wanted = plain_table(content)
            require(
                table.values.tolist() == wanted,
                f"read {table.values.tolist()[:3]} where csv reads {wanted[:3]}",
            )
        whole, dataset = attempt(self.data, hcd.open_dataset, self.data)
        require(whole == "refused" or outcome == "read", "opened with a table that cannot be read")
        if whole == "read":
            rows = {"train_labels.csv": dataset.labels, "test_labels.csv": dataset.test_labels}.get(
                name
            )
            require(
                rows is None or rows.astype(str).values.tolist() == table.values.tolist(),
                "labels are not the table's",
            )
            require(
                name[0] != "s" or list(dataset.sample_ids) == table["id"].tolist(),
                "ids are not the table's",
            )
        return whole

    def try_card(self, rng):
        content = mutate.mutate_json(rng, self.card)
        (self.model / "card.json").write_bytes(content)
        if rng.random() < 0.02:
            return check_main(
                ["predict", str(self.model), str(self.data / "none.tif")], self.model, self.data
            )
        outcome, bundle = attempt(self.model, hcd.load_bundle, self.model)
        if outcome == "read":
            card = json.loads(content, object_pairs_hook=once)
            require(bundle.card == card, "another card than json reads")
            # a field that is not there takes its default, see Recipe.from_stored
            same = json.loads(json.dumps({**asdict(hcd.Recipe()), **card["recipe"]}))
            same["pretrained"] = False
            require(
                json.loads(json.dumps(asdict(bundle.recipe))) == same,
                "another recipe than json reads",
            )
            attempt("", hcd.predict_image, bundle, next(self.data.glob("test/*.tif")))
        return outcome

    def try_safetensors(self, rng):
        path, content = self.model / "model.safetensors", mutate.mutate_weights(rng, self.weights)
        path.write_bytes(content)
        card = {**json.loads(self.card), "weights_sha256": sha256(content).hexdigest()}
        (self.model / "card.json").write_bytes(json.dumps(card).encode())
        outcome, bundle = attempt(self.model, hcd.load_bundle, self.model)
        if outcome == "read":
            wanted = plain_tensors(content)
            state = bundle.model.state_dict()
            require(
                set(wanted) == set(state)
                and all(np.array_equal(state[name], wanted[name]) for name in wanted),
                "other weights than the file holds",
            )
        return outcome

    def try_save(self, rng):
        path, content = (
            self.folder / "models" / "a.pth",
            mutate.mutate_bytes(rng, rng.choice(self.saves), self.saves),
        )
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        outcome, loaded = attempt(path, load_tensors, path)
        require(outcome == "refused" or is_plain(loaded), "more than tensors and numbers")
        learner = Learner.__new__(Learner)
        learner.path, learner.model_dir, learner.model = self.folder, "models", small_model()
        learner.opt = torch.optim.Adam(learner.model.parameters())
        again, _ = attempt(path, learner.load, "a")
        require(outcome == "read" or again == "refused", "loaded what cannot be read")
        export, _ = attempt(path, hcd.load_export, path)
        require(export == "refused", "unpickled without trust")
        return again

    def try_record(self, rng):
        (self.folder / "run" / "run.json").write_bytes(mutate.mutate_json(rng, self.record))
        if rng.random() < 0.02:
            return check_main(
                ["run", "--resume", str(self.folder / "run"), "--batch-size", "7"],
                self.folder / "run",
            )
        outcome, record = attempt(self.folder / "run", resume_record, self.folder / "run", {})
        for name, value in record["parameters"].items() if record else ():
            # as papermill writes it into the notebook
            (line,) = ast.parse(f"{name} = {PythonTranslator.translate(value)}").body
            require(
                isinstance(line, ast.Assign)
                and line.targets[0].id == name
                and ast.literal_eval(line.value) == value,
                "code",
            )
        return outcome


def attempt(place, function, *args, must_read=False):
    """Return ("read", result) or ("refused", None); raise Wrong where the error is not clear."""
    try:
        return "read", function(*args)
    except REFUSALS as error:
        text, cause = str(error), error
        while cause is not None:
            starved = isinstance(cause, MemoryError) or re.search(
                "nsufficient memory|t allocate", str(cause)
            )
            require(not starved, f"no memory: {cause}")
            cause = cause.__cause__ or cause.__context__
        require(not must_read, f"does not report: {text[:300]}")
        require(len(text.splitlines()) == 1 and len(text) < 1000, f"not one line: {text[:300]!r}")
        require(str(place) in text, f"does not name {place}: {text[:300]}")
        text.encode()
        return "refused", None


def check_main(arguments, *places):
    """Run the command line; 0 and 1 come with lines on the screen alone, 2 with one line of
    error."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.main(arguments)
    lines = [
        line
        for line in errors.getvalue().replace("\r", "\n").splitlines()
        if "checking patches" not in line and line.strip()
    ]
    require(code in (0, 1, 2) and "Traceback" not in errors.getvalue(), f"exit code {code}")
    require(len(lines) == (code == 2), f"exit code {code} with {lines[:3]}")
    require(
        code != 2
        or (lines[0].startswith("hcd: ") and any(str(place) in lines[0] for place in places)),
        f"unclear: {lines}",
    )
    out.getvalue().encode()
    if "--json" in arguments and code < 2:
        json.loads(out.getvalue(), parse_constant=lambda text: require(False, text))
    return "refused" if code else "read"


# other readers


def same_image(image, content):
    """Say whether Pillow reads the same pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(without_profile(content))) as file:
                other = np.asarray(file.convert("RGB") if file.mode == "P" else file)
        except Exception as error:
            raise Wrong(f"read, but Pillow refuses: {type(error).__name__} {error}") from error
    return image.dtype == np.uint8 and np.array_equal(image, other)


def without_profile(content):
    """Return a PNG without its colour profile, which changes no pixel and which Pillow turns a file
    down for; other files as they are."""
    place = 8
    while content[:4] == b"\x89PNG" and place + 8 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] == b"iCCP":
            return without_profile(content[:place] + content[end:])
        place = end
    return content


def plain_table(content):
    """Return [[id, label], ...] as the csv module reads them; Wrong where a table has no one
    meaning."""
    text = content.decode("utf-8-sig")
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    header = rows[0]
    require(header.count("id") == header.count("label") == 1, f"read with the header {header[:5]}")
    odd = [row for row in rows if len(row) != len(header)]
    require(not odd, f"read with {len(header)} columns where a row has {len(odd[0]) if odd else 0}")
    return [[row[header.index("id")], row[header.index("label")]] for row in rows[1:]]


def plain_tensors(content):
    """Return {name: array} of a safetensors file by its specification."""
    length = int.from_bytes(content[:8], "little")
    header, body = (
        json.loads(content[8 : 8 + length], object_pairs_hook=once),
        content[8 + length :],
    )
    header.pop("__metadata__", None)
    kinds = {"F32": np.float32, "I64": np.int64}
    return {
        name: (
            np.frombuffer(body[slice(*entry["data_offsets"])], kinds[entry["dtype"]]).reshape(
                entry["shape"]
            )
        )
        for name, entry in header.items()
    }


def once(pairs):
    """Make a JSON object of its pairs; Wrong where a key stands twice."""
    require(len(dict(pairs)) == len(pairs), "a key stands twice")
    return dict(pairs)


def is_plain(thing):
    if isinstance(thing, dict):
        return all(map(is_plain, [*thing, *thing.values()]))
    if isinstance(thing, (list, tuple, set)):
        return all(map(is_plain, thing))
    plain = (
        str,
        bytes,
        bool,
        int,
        float,
        complex,
        type,
        np.generic,
        np.dtype,
        torch.Tensor,
        torch.dtype,
        torch.device,
    )
    return thing is None or isinstance(thing, plain)
