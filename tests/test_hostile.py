"""Damaged and hostile input gives a clear error or a correct read; a full disk or a kill leaves the
old file or the new one."""

import csv
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import hcd
from hcd import cli, load_bundle, read_cropped_image, read_image, save_bundle
from hcd.dataset.tables import read_table
from hcd.disk.headers import claimed_size
from hcd.disk.images import MOST_BYTES, decode_image
from hcd.runs.notebook import _WholeFiles
from hcd.runs.record import start_record

pytestmark = pytest.mark.hostile
ROOT = Path(__file__).resolve().parent.parent
QUICK = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def noise(size=96):
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encode(kind, *options):
    return cv2.imencode(kind, noise()[..., ::-1], options)[1].tobytes()


def with_tag(content, tag, value):
    """Return a little-endian TIFF with one tag of its directory set to a LONG."""
    damaged, start = bytearray(content), int.from_bytes(content[4:8], "little")
    for place in range(
        start + 2, start + 2 + 12 * int.from_bytes(content[start : start + 2], "little"), 12
    ):
        if int.from_bytes(content[place : place + 2], "little") == tag:
            struct.pack_into("<HII", damaged, place + 2, 4, 1, value)
            return bytes(damaged)
    raise AssertionError(f"no tag {tag}")


# thousands of them, in a process of their own


def test_a_thousand_damaged_files_are_read_correctly_or_refused():
    """The same program makes the long run: python -m tests.fuzz --count 20000."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--count",
            "1000",
            "--seconds",
            "6",
            "--rng-seed",
            "7",
            "--json",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert set(found) == {"tiff", "image", "csv", "card", "safetensors", "save", "record"}
    assert sum(row["inputs"] for row in found.values()) >= 60 and not any(
        row["failed"] for row in found.values()
    )
    assert sum(row["read"] for row in found.values()) and sum(
        row["refused"] for row in found.values()
    )


def test_the_fuzzer_sees_what_is_wrong(tmp_path):
    """A reader that returns damaged pixels, one that fills the memory, a hang and a crash are all
    failures to it."""
    from fuzz import cases
    from fuzz.__main__ import answer

    with pytest.raises(cases.Wrong, match="not one line"):
        cases.attempt("a", lambda: (_ for _ in ()).throw(ValueError("a is\nwrong")))
    with pytest.raises(cases.Wrong, match="does not name"):
        cases.attempt("a.tif", lambda: (_ for _ in ()).throw(ValueError("wrong")))
    with pytest.raises(KeyError):
        cases.attempt("a", lambda: {}["a"])
    for cause in (MemoryError(), cv2.error("Insufficient memory")):
        with pytest.raises(cases.Wrong, match="memory"):
            cases.attempt(
                "a", lambda cause=cause: exec("raise ValueError('a') from cause", {"cause": cause})
            )
    assert not cases.same_image(noise() ^ 1, encode(".png")) and cases.same_image(
        noise(), encode(".png")
    )
    for code, words in (
        ("import time; time.sleep(60)", "hangs"),
        ("import os; os.kill(os.getpid(), 11)", "ends with -11"),
    ):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        ) as worker:
            assert words in answer(worker, 2)["outcome"]
            worker.kill()


def test_the_same_case_is_the_same_whatever_came_before_it():
    from fuzz.mutate import mutate_json

    content = json.dumps({"a": {"b": [1, {"c": 2}], "d": []}, "e": [0.5] * 3}).encode()
    one_way = [mutate_json(random.Random(number), content) for number in range(2000)]
    assert one_way[::-1] == [
        mutate_json(random.Random(number), content) for number in reversed(range(2000))
    ]
    assert len(set(one_way)) > 1000


# images

LZW, DEFLATE, PLAIN = (encode(".tif", cv2.IMWRITE_TIFF_COMPRESSION, kind) for kind in (5, 8, 1))
JPEG, PNG = encode(".jpg"), encode(".png")
FRAME = JPEG.index(b"\xff\xc0") + 5
IHDR = b"IHDR" + struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
BOMBS = {
    "LZW TIFF": (with_tag(with_tag(LZW, 256, 20_000), 257, 20_000), "20000 x 20000"),
    "long TIFF": (with_tag(LZW, 257, 2**31), "96 x 2147483648"),
    "plain TIFF": (with_tag(with_tag(PLAIN, 256, 30_000), 257, 30_000), "30000 x 30000"),
    "tiles": (
        with_tag(LZW, 278, 96).replace(
            struct.pack("<HHII", 278, 4, 1, 96), struct.pack("<HHII", 322, 4, 1, 2**30)
        ),
        "1073741824 x 96",
    ),
    "JPEG": (
        JPEG[:FRAME] + struct.pack(">HH", 16_000, 65_000) + JPEG[FRAME + 4 :],
        "65000 x 16000",
    ),
    "PNG": (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + IHDR
        + struct.pack(">I", zlib.crc32(IHDR))
        + bytes(99),
        "60000 x 60000",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_claims_gigabytes_reaches_no_decoder(tmp_path, refused, monkeypatch, name):
    content, size = BOMBS[name]
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("the decoder was asked"))
    for read in (read_image, read_cropped_image):
        with refused(ValueError, path, f"claims {size} px", "restore it"):
            read(path)


@pytest.mark.parametrize("name", ["LZW", "DEFLATE", "PLAIN", "JPEG", "PNG"])
def test_claimed_sizes_are_those_of_the_files(name):
    content = {"LZW": LZW, "DEFLATE": DEFLATE, "PLAIN": PLAIN, "JPEG": JPEG, "PNG": encode(".png")}[
        name
    ]
    assert claimed_size(content) == (96, 96) and decode_image(content).shape == (96, 96, 3)


@pytest.mark.parametrize("end", [2, 3, 7, 8, 20, 24])
def test_a_header_that_is_cut_claims_nothing(end):
    for content in (
        LZW,
        JPEG,
        encode(".png"),
        b"MM\0*",
        b"II+\0" + bytes(30),
        b"II*\0\xff\xff\xff\x7f" + bytes(30),
    ):
        size = claimed_size(content[:end])
        assert size is None or size[0] * size[1] in (0, 96 * 96)


def test_pixels_that_opencv_passes_on_damaged_are_refused(tmp_path, refused):
    """OpenCV logs libtiff's error and returns the pixels decoded until then; the checksum says that
    they are wrong."""
    damaged = bytearray(DEFLATE)
    damaged[20_000] ^= 0x55
    passed = cv2.imdecode(np.frombuffer(bytes(damaged), np.uint8), cv2.IMREAD_UNCHANGED)
    assert passed.shape == (96, 96, 3) and not np.array_equal(passed[..., ::-1], noise())
    path = tmp_path / "a.tif"
    path.write_bytes(bytes(damaged))
    with refused(ValueError, path, "cannot be decoded", "damaged"):
        read_image(path)


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "GIF", "JPEG2000", "PPM"])
def test_other_kinds_of_images_are_refused(tmp_path, refused, kind):
    Image.fromarray(noise()).save(tmp_path / "a.tif", kind)
    with refused(ValueError, tmp_path / "a.tif", "no TIFF, PNG or JPEG"):
        read_image(tmp_path / "a.tif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes in the file system")
def test_a_pipe_a_device_and_a_file_without_end_are_not_waited_for(
    tmp_path, refused, sample, copy_of_sample
):
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "zero.tif").symlink_to("/dev/zero")
    for name in ("pipe.tif", "zero.tif"):
        with refused(FileNotFoundError, tmp_path / name, "is no file"):
            read_image(tmp_path / name)
    with open(tmp_path / "huge.tif", "wb") as file:
        file.truncate(1 << 40)
    with refused(ValueError, tmp_path / "huge.tif", 1 << 40, MOST_BYTES):
        read_image(tmp_path / "huge.tif")
    first, second, third = sorted((copy_of_sample / "train").iterdir())[:3]
    for path, other in ((first, "pipe.tif"), (second, "zero.tif"), (third, "huge.tif")):
        path.unlink()
        path.symlink_to(tmp_path / other)
    report = hcd.check_dataset(copy_of_sample, progress=False)
    found = [entry.split(":")[0] for entry in report.findings["unreadable"]]
    assert found == [f"train/{path.name}" for path in (first, second, third)]


BEGINNINGS = [
    b"",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    LZW,
    PNG,
]


@QUICK
@given(st.binary(max_size=400), st.integers(0, 1000), st.sampled_from(BEGINNINGS))
def test_any_bytes_behind_any_beginning(tmp_path, tail, keep, head):
    path = tmp_path / "a.tif"
    path.write_bytes(head[: len(head) - keep if len(head) > 1000 else len(head)] + tail)
    try:
        image = read_image(path)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert np.array_equal(image, noise())


# tables

ODD = st.sampled_from(["id", "label", "0", "1", '"', "a,b", "\r", "\n", "NA", " "])
# before 3.11 Python's csv could not write a NUL
WRITABLE = st.characters(
    codec="utf-8", exclude_characters="" if sys.version_info >= (3, 11) else "\0"
)
ROWS = st.lists(
    st.lists(st.text(WRITABLE, max_size=8) | ODD, min_size=1, max_size=4), min_size=1, max_size=6
)


@QUICK
@given(ROWS, st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_table_is_read_as_pythons_csv_reads_it_or_refused(tmp_path, rows, headed, end):
    path, file = tmp_path / "a.csv", io.StringIO(newline="")
    csv.writer(file, lineterminator=end).writerows([["id", "label"], *rows] if headed else rows)
    text = file.getvalue()
    path.write_bytes(text.encode())
    header, *whole = [
        row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row
    ] or [[]]
    sound = (
        whole
        and all(len(row) == len(header) for row in whole)
        and header.count("id") == header.count("label") == 1
    )
    try:
        table = read_table(path)
    except ValueError as error:
        assert not sound or "\0" in text or text[0] == "\ufeff", error
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert sound and table.values.tolist() == [
            [row[header.index("id")], row[header.index("label")]] for row in whole
        ]


# cards and weights


@pytest.fixture(scope="module")
def model(learner, tmp_path_factory):
    return save_bundle(
        learner, tmp_path_factory.mktemp("hostile") / "model", {"validation AUC": 0.5}
    )


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
BRANCHES = st.lists(LEAVES, max_size=4) | st.dictionaries(st.text(max_size=8), LEAVES, max_size=4)
JSON = (
    LEAVES
    | BRANCHES
    | st.lists(BRANCHES, max_size=4)
    | st.dictionaries(st.text(max_size=8), BRANCHES, max_size=4)
)


@QUICK
@given(st.data())
def test_any_value_in_any_field_of_a_card(model, data):
    card = json.loads((model / "card.json").read_text())
    place = data.draw(st.sampled_from([card, card["recipe"]]))
    name, value = data.draw(st.sampled_from(sorted(place))), data.draw(JSON)
    whole = (model / "card.json").read_bytes()
    place[name] = value
    try:
        (model / "card.json").write_text(json.dumps(card), "utf-8")
        bundle = load_bundle(model)
    except (ValueError, TypeError) as error:
        assert str(model) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert bundle.card == card
    finally:
        (model / "card.json").write_bytes(whole)


def test_a_name_that_stands_twice_on_a_card(model, refused):
    whole = (model / "card.json").read_text()
    try:
        (model / "card.json").write_text(
            whole.replace('"recipe": {', '"recipe": {"arch": "densenet169", ', 1)
        )
        with refused(ValueError, model / "card.json", "twice"):
            load_bundle(model)
    finally:
        (model / "card.json").write_text(whole)


def test_a_tensors_name_with_line_breaks_stays_on_one_line(model, refused):
    weights, card = (model / "model.safetensors").read_bytes(), (model / "card.json").read_text()
    header = json.dumps(
        {"a\r\nb\u2028c": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}
    ).encode()
    content = (len(header).to_bytes(8, "little") + header).ljust(len(weights), b"\0")
    try:
        (model / "model.safetensors").write_bytes(content)
        (model / "card.json").write_text(
            json.dumps({**json.loads(card), "weights_sha256": sha256(content).hexdigest()})
        )
        with refused(
            ValueError, model / "model.safetensors", "is no safetensors file", "copy it again"
        ):
            load_bundle(model)
    finally:
        (model / "model.safetensors").write_bytes(weights)
        (model / "card.json").write_text(card)


TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "I64", "U8", "F4", ""]) | st.text(max_size=4),
        "shape": st.lists(st.integers(-1, 2**64), max_size=4),
        "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3),
    }
)


@settings(QUICK, max_examples=40)
@given(
    st.dictionaries(st.text(max_size=6) | st.just("0.0.0.weight"), TENSORS | JSON, max_size=4),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_any_header_of_the_weights(model, header, length):
    paths = model / "model.safetensors", model / "card.json"
    weights, card = (path.read_bytes() for path in paths)
    written = json.dumps(header).encode()
    content = ((len(written) if length is None else length).to_bytes(8, "little") + written).ljust(
        len(weights), b"\0"
    )
    try:
        paths[0].write_bytes(content)
        paths[1].write_text(
            json.dumps({**json.loads(card), "weights_sha256": sha256(content).hexdigest()})
        )
        with pytest.raises(ValueError) as caught:
            load_bundle(model)
        assert str(paths[0]) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    finally:
        for path, whole in zip(paths, (weights, card)):
            path.write_bytes(whole)


# full disks and kills


@pytest.fixture
def disk(tmp_path):
    """Function (KiB) -> folder on a disk of that size."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)],
                check=True,
                capture_output=True,
            )
        except (subprocess.CalledProcessError, OSError) as error:
            pytest.skip(f"cannot mount a small disk here: {error}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fill(folder, left):
    """Leave that many bytes of a disk free, in whole blocks."""
    room = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - left))


@pytest.mark.parametrize("left", [0, 8_192, 1_000_000, 5_000_000])
def test_a_model_folder_on_a_full_disk_keeps_the_older_model(disk, learner, sample, refused, left):
    """5 MB are enough for the weights but not for the card beside them."""
    folder = disk(12_000)
    save_bundle(learner, folder / "model", {"validation AUC": 0.25})
    before = contents(folder / "model")
    left = len(before["model.safetensors"]) // 4096 * 4096 + 4096 if left == 5_000_000 else left
    fill(folder, left)
    with refused(OSError, folder / "model", "No space left on device", "free space"):
        save_bundle(learner, folder / "model", {"validation AUC": 0.75, "curve": [0.5] * 20_000})
    assert contents(folder / "model") == before and load_bundle(folder / "model").card[
        "metrics"
    ] == {"validation AUC": 0.25}
    (folder / "filler").unlink()
    save_bundle(learner, folder / "model", {"validation AUC": 0.75})
    assert load_bundle(folder / "model").card["metrics"] == {"validation AUC": 0.75}


def test_an_interruption_between_any_two_renames_leaves_a_model_that_loads(
    learner, tmp_path, monkeypatch
):
    """Renames are the moments at which a kill can make a difference; a second learner makes other
    weights."""

    def stop_at(number):
        def replace(source, target, count=iter(range(100)), replace=os.replace):
            if next(count) == number:
                raise KeyboardInterrupt
            replace(source, target)

        return replace

    folder, seen = tmp_path / "model", []
    bias, before = learner.model[1][-1].bias, learner.model[1][-1].bias.detach().clone()
    try:
        for number in range(20):
            if number == 0:
                save_bundle(learner, folder, {"number": -1})
            with torch.no_grad():
                bias += 1
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", stop_at(number))
                try:
                    save_bundle(learner, folder, {"number": number})
                except KeyboardInterrupt:
                    stopped = True
                else:
                    stopped = False
            bundle = load_bundle(folder)
            seen.append(bundle.card["metrics"]["number"])
            assert torch.equal(bundle.model[1][-1].bias, before + 1 + seen[-1])
            if not stopped:
                break
    finally:
        with torch.no_grad():
            bias.copy_(before)
    assert (
        not stopped
        and seen[-1] == number
        and {-1, number - 1} <= set(seen)
        and not list(folder.glob(".model-*"))
    )


def test_every_other_artefact_on_a_full_disk(
    disk, learner, sample, model, refused, capsys, monkeypatch
):
    folder = disk(12_000)
    learner_path = learner.path
    probabilities = np.full((len(sample.test_ids), 2), 0.5)

    def submit():
        hcd.write_submission(folder / "submission.csv", sample, learner, probabilities)

    def predict():
        if cli.main(
            [
                "predict",
                str(model),
                *map(str, sample.test_paths),
                "--csv",
                str(folder / "predictions.csv"),
            ]
        ):
            raise OSError(28, capsys.readouterr().err.strip())

    writers = {
        "walkthrough.ipynb": lambda: _WholeFiles().write("x" * 9000, folder / "walkthrough.ipynb"),
        "run.json": lambda: start_record(folder, hcd.Recipe(), {}),
        "checkpoints/start.pth": lambda: hcd.Checkpoints(
            folder / "checkpoints", hcd.Recipe(), sample
        ),
        "submission.csv": submit,
        "metrics.json": lambda: hcd.write_json(folder / "metrics.json", {"losses": [0.5] * 2000}),
        "predictions.csv": predict,
        "models/stage1.pth": lambda: learner.save("stage1"),
    }
    try:
        monkeypatch.setattr(learner, "path", folder)
        for writer in writers.values():
            writer()
        before = contents(folder)
        assert set(before) == set(writers) and all(before.values())
        fill(folder, 0)
        for name, writer in writers.items():
            with pytest.raises(OSError, match="No space left on device") as caught:
                writer()
            assert str(folder) in str(caught.value) and len(str(caught.value).splitlines()) == 1, (
                name
            )
            assert {
                path: content for path, content in contents(folder).items() if path != "filler"
            } == before, name
    finally:
        learner.path = learner_path


@pytest.mark.parametrize(
    "form, left",
    [*(("wsinfer", left) for left in (0, 8_192, 1_000_000, 3_000_000)), ("onnx", 1_000_000)],
)
def test_an_export_on_a_full_disk_keeps_the_older_one(disk, model, capsys, form, left):
    """The model's file takes 3.0 MB; of 3,000,000 bytes left it takes all, before it is whole."""
    folder = disk(20_000)
    place = folder / ("one.onnx" if form == "onnx" else "exported")
    command = ["export", str(model), f"--{form}", str(place)]
    assert cli.main(command) == 0
    before = contents(folder)
    fill(folder, left)
    capsys.readouterr()
    assert cli.main(command) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.count("No space left on device") == 1, err
    assert f"{place} cannot be written (No space left" in err and "free space" in err
    (folder / "filler").unlink()
    assert contents(folder) == before
    assert cli.main(command) == 0


def test_a_sample_that_does_not_fit_leaves_nothing(disk, refused):
    folder = disk(500)
    with pytest.raises(OSError, match="No space left on device"):
        hcd.make_sample(folder / "data", train=40, test=8)
    assert contents(folder) == {}
    hcd.make_sample(folder / "data", train=8, test=2)


KILLED = """
import sys, tempfile, torch, numpy as np
import hcd
folder, recipe = sys.argv[1], hcd.Recipe.sample(arch="squeezenet1_1", batch_size=8)
with tempfile.TemporaryDirectory() as place:
    dataset = hcd.make_sample(f"{place}/data", train=24, test=40)
    _, valid_idx = hcd.stratified_split(dataset.labels["label"], 0.25, 0)
    data = hcd.make_databunch(dataset, recipe, valid_idx, num_workers=0, device="cpu")
    learner = hcd.get_learner(data, recipe, place)
    number = 0
    while True:
        number += 1
        with torch.no_grad():
            learner.model[1][-1].bias.fill_(number % 100)
        hcd.write_json(f"{folder}/metrics.json", {"number": number, "losses": [number] * 20000})
        share = number % 100 / 100
        probabilities = np.tile([1 - share, share], (40, 1))
        hcd.write_submission(f"{folder}/submission.csv", dataset, learner, probabilities)
        hcd.save_bundle(learner, f"{folder}/model", {"number": number})
        print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_whole_artefacts(tmp_path):
    """One process writes all the time; it is stopped at 20 moments, and what lies there then is
    what a kill would leave."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    ) as writer:
        try:
            assert writer.stdout.readline() == b"1\n"
            seen = []
            for moment in range(20):
                # a version that was not there at the last look, however long it takes
                while int(writer.stdout.readline()) <= (seen[-1][0] if seen else 1):
                    pass
                time.sleep(0.013 * (moment % 5))
                writer.send_signal(signal.SIGKILL if moment == 19 else signal.SIGSTOP)
                seen.append(look(tmp_path))
                writer.send_signal(signal.SIGCONT)
        finally:
            writer.kill()
    writer.wait()
    assert len({numbers[0] for numbers in seen}) == 20


def look(folder):
    """Require every artefact to be one whole version; return their numbers."""
    time.sleep(0.02)  # until it stands still
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["losses"] == [metrics["number"]] * 20000
    lines = (folder / "submission.csv").read_text().splitlines()
    assert (
        len(lines) == 41
        and lines[0] == "id,label"
        and len({line.split(",")[1] for line in lines[1:]}) == 1
    )
    bundle = load_bundle(folder / "model")
    assert bundle.model[1][-1].bias[0].item() == bundle.card["metrics"]["number"] % 100
    return metrics["number"], lines[1].split(",")[1], bundle.card["metrics"]["number"]
