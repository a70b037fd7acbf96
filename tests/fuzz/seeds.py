"""Whole files of every kind, to be damaged."""

import io
import struct
from hashlib import sha256

import cv2
import numpy as np
import safetensors.torch
import torch
from PIL import Image

import hcd
from hcd.disk.images import encode_tiff
from hcd.disk.whole import write_json
from hcd.export.card import make_card
from hcd.learner import build_model
from hcd.runs.record import start_record

RECIPE = hcd.Recipe.sample(arch="squeezenet1_1")


def seed_images(rgb):
    """Return {kind: files} that hold the patch in every layout that is met in the wild, and some
    that are not patches."""

    def encode(kind, image=rgb[..., ::-1], *options):
        return cv2.imencode(kind, image, options)[1].tobytes()

    def pillow(kind, **options):
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, kind, **options)
        return buffer.getvalue()

    plain, gray = (cv2.IMWRITE_TIFF_COMPRESSION, 1), rgb[..., 0]
    tiff = [encode_tiff(rgb)] * 3 + [encode(".tif", rgb[..., ::-1], *plain)] * 2
    tiff += [
        encode(".tif", rgb[..., ::-1], *plain, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 8),
        encode(".tif"),
    ]
    tiff += [
        encode(".tif", rgb[..., ::-1], cv2.IMWRITE_TIFF_COMPRESSION, kind) for kind in (8, 32773)
    ]
    tiff += [
        pillow("TIFF", compression=kind)
        for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg")
    ]
    tiff += [
        pillow("TIFF", big_tiff=True),
        pillow("TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
    ]
    tiff += [
        encode(".tif", image, *plain)
        for image in (gray, np.dstack([rgb, gray]), rgb.astype(np.uint16) * 257)
    ]
    tiff += [
        encode(".tif", rgb.astype(np.float32)),
        tiled(rgb, "<"),
        tiled(rgb, ">"),
        big_endian(rgb),
    ]
    png = [
        encode(".png"),
        pillow("PNG"),
        encode(".png", gray),
        encode(".png", np.dstack([rgb, gray])),
        encode(".png", rgb.astype(np.uint16) * 257),
    ]
    jpeg = [
        encode(".jpg"),
        encode(".jpg", rgb[..., ::-1], cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        pillow("JPEG", subsampling=0),
        encode(".jpg", gray),
        encode(".jpg", rgb[..., ::-1], cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    ]
    other = [encode(kind) for kind in (".bmp", ".webp", ".ppm", ".jp2", ".sr")] + [pillow("GIF")]
    Image.init()
    other += [pillow("AVIF")] if "AVIF" in Image.SAVE else []  # Pillow >= 11.3
    other += [
        encode(".hdr", rgb.astype(np.float32)),
        b"",
        b"GIF89a",
        b"id,label\n",
        b"%PDF-1.7",
        b"\x89HDF\r\n\x1a\n",
        b"PK\3\4",
    ]
    return {"tiff": tiff, "png": png, "jpeg": jpeg, "other": other}


def _directory(order, rows):
    """Return a TIFF's directory of rows (tag, kind, count, value or where the values stand)."""
    entries = [
        struct.pack(f"{order}HHI", *row[:3])
        + (
            struct.pack(f"{order}HH", row[3], 0)
            if row[1:3] == (3, 1)
            else struct.pack(f"{order}I", row[3])
        )
        for row in rows
    ]
    return struct.pack(f"{order}H", len(rows)) + b"".join(entries) + struct.pack(f"{order}I", 0)


def big_endian(rgb):
    """Return an uncompressed TIFF of one strip, most significant byte first."""
    start = 8 + rgb.size
    height, width = rgb.shape[:2]
    rows = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, start + 2 + 9 * 12 + 4),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, rgb.size),
    ]
    return (
        b"MM\0*"
        + struct.pack(">I", start)
        + rgb.tobytes()
        + _directory(">", rows)
        + struct.pack(">3H", 8, 8, 8)
    )


def tiled(rgb, order):
    """Return an uncompressed TIFF of 32 x 32 px tiles."""
    tiles = [
        rgb[y : y + 32, x : x + 32].tobytes() for y in range(0, 96, 32) for x in range(0, 96, 32)
    ]
    start, tail = 8 + rgb.size, 8 + rgb.size + 2 + 10 * 12 + 4
    rows = [
        (256, 3, 1, 96),
        (257, 3, 1, 96),
        (258, 3, 3, tail),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (277, 3, 1, 3),
        (322, 3, 1, 32),
        (323, 3, 1, 32),
        (324, 4, 9, tail + 6),
        (325, 4, 9, tail + 42),
    ]
    lists = struct.pack(f"{order}3H18I", 8, 8, 8, *(8 + 3072 * n for n in range(9)), *[3072] * 9)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    return head + b"".join(tiles) + _directory(order, rows) + lists


def make_model(folder):
    """Write a model folder of untrained weights, without the learner that save_bundle takes."""
    torch.manual_seed(0)
    model, _ = build_model(RECIPE)
    weights = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    )
    card, _ = make_card(
        RECIPE,
        sha256(weights).hexdigest(),
        {"validation AUC": 0.5, "stage1": {"losses": [0.5, 0.25]}},
        "ab12",
    )
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    write_json(folder / "card.json", card)
    return folder


def make_record(folder):
    """Write the record of a run that has not ended and return its bytes."""
    folder.mkdir()
    changes = {"arch": "squeezenet1_1", "mean": [0.5, 0.25, 0.125]}
    parameters = {
        "data_folder": "data",
        "recipe_changes": changes,
        "num_workers": 2,
        "device": "cpu",
        "remove_outliers": False,
        "back_to_stage1": True,
        "slides_file": "",
    }
    start_record(folder, hcd.Recipe(**changes), parameters, "ab12")
    return (folder / "run.json").read_bytes()


def small_model():
    return torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)
    )


def seed_saves():
    """Return files as Learner.save writes them: both formats, with and without the optimiser, and
    ones with code in them."""
    model, files = small_model(), []
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(torch.ones(2, 4)).sum().backward()
    optimiser.step()
    optimiser.param_groups[0]["lr"] = np.float64(1e-3)  # as fastai's schedules leave it
    for zipped in (True, False):
        for state in (
            {"model": model.state_dict(), "opt": optimiser.state_dict()},
            model.state_dict(),
            model,
        ):
            buffer = io.BytesIO()
            torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
            files.append(buffer.getvalue())
    return files
