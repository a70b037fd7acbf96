"""The yardstick is the walkthrough's reader, a difference is noticed, and the command runs. Nothing
here is timed."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from benchmarks import auc, audit, cold, curve, epoch, gpu, pcam, plain, robust, slide, startup
from benchmarks.rows import drawn, require_equal

import hcd

CHECKOUT = Path(__file__).resolve().parents[1]


def run(*arguments):
    command = [sys.executable, "-m", "tests.benchmarks", "--tiny", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # so little work is not worth two threads
    return subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_the_plain_reader_is_the_walkthroughs(tmp_path):
    with np.load(CHECKOUT / "tests/golden/reader.npz") as golden:
        for index, rgb in enumerate(golden["rgb"]):
            assert cv2.imwrite(
                f"{tmp_path}/{index}.tif", rgb[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1]
            )
        for index, rng_seed, sha1 in zip(golden["image_index"], golden["rng_seed"], golden["sha1"]):
            random.seed(int(rng_seed))
            crop = np.ascontiguousarray(plain.read_crop(f"{tmp_path}/{index}.tif"), np.float32)
            assert hashlib.sha1(crop.tobytes()).hexdigest() == str(sha1)


def test_plain_statistics_find_the_samples_outliers(sample):
    mean, std, dark, bright = plain.channel_statistics(sample.train_paths)
    found = hcd.channel_statistics(sample.train_paths, progress=False)
    assert (len(dark), len(bright)) == (1, 2)
    assert [[Path(file).stem for file in files] for files in (dark, bright)] == [
        found.too_dark,
        found.too_bright,
    ]
    np.testing.assert_allclose([found.mean, found.std], [mean, std], rtol=0, atol=1e-12)


def test_one_wrong_bit_is_noticed_before_anything_is_timed(sample):
    path = sample.train_paths[5]
    theirs, ours = drawn(3, plain.read_crop, path), drawn(3, hcd.read_cropped_image, path).copy()
    require_equal(theirs, ours, path)
    ours[40, 40, 1] = np.nextafter(ours[40, 40, 1], np.float32(0.5))
    with pytest.raises(ValueError, match="hcd reads other values"):
        require_equal(theirs, ours, path)


def test_start_up_folder_is_a_data_set_of_hard_links(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "LINKS", 40)
    startup.make_folder(tmp_path / "many", sample.train_paths, 100)
    dataset = hcd.open_dataset(tmp_path / "many")
    assert (
        len(dataset.labels),
        len(dataset.test_ids),
        hcd.verify_patches(dataset.train_paths, progress=False),
    ) == (100, 26, 100)
    inodes = [Path(path).stat().st_ino for path in [*dataset.train_paths, *dataset.test_paths]]
    assert sorted(map(inodes.count, set(inodes))) == [20, 26, 40, 40]
    assert all(Path(path).stat().st_nlink == 1 for path in sample.train_paths)


@pytest.mark.long
@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc"
)
def test_the_command_prints_every_row(sample, tmp_path):
    data = shutil.copytree(sample.root, tmp_path / "data")
    before = sorted(data.rglob("*"))
    answer = run("--setup", "--data", str(data))
    assert answer.returncode == 0, answer.stderr
    head, _, _, _, *lines = answer.stdout.splitlines()
    assert "torch" in head and "real patches" in head
    assert len(lines) == 8 + 13
    for line in lines:
        assert re.fullmatch(
            r"\| [^|]+ \| [\d.,]+ [^|]+ \| [\d.,]+ [^|]+ \| [\d.]+ x \([^|]+\) \| [^|]* \|", line
        ), line
    assert sorted(data.rglob("*")) == before


@pytest.mark.long
def test_the_auc_command_trains_both_ways_and_prints_each_auc(sample, capsys):
    auc.main(
        [
            "--data",
            str(sample.root),
            "--arch",
            "squeezenet1_1",
            "--no-pretrained",
            "--batch-size",
            "8",
            "--patches",
            "40",
            "--rng-seeds",
            "0",
            "1",
        ]
    )
    _, _, _, _, *lines = capsys.readouterr().out.splitlines()
    table = [[float(cell) for cell in line.split("|")[2:4]] for line in lines[:2]]
    assert (
        np.shape(table) == (2, 2)
        and all(0 <= value <= 1 for row in table for value in row)
        and table[0] != table[1]
    )
    assert lines[2].startswith("| mean (standard deviation) |")
    np.testing.assert_allclose(
        [float(cell.split("(")[0]) for cell in lines[2].split("|")[2:4]],
        np.mean(table, axis=0),
        atol=2e-4,
    )


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="empties Linux's page cache")
def test_the_cold_command_reads_files_and_pack(sample, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cold, "DROP", tmp_path / "none")  # the machine's own caches are left alone
    before = sorted(sample.root.rglob("*"))
    cold.main(["--data", str(sample.root), "--into", str(tmp_path), "--rounds", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "us a patch" in line]
    assert [row.split("|")[1].strip() for row in rows] == [
        f"{state}, {order}" for order in ("random order", "in order") for state in ("cold", "warm")
    ]
    assert not list(tmp_path.iterdir()) and sorted(sample.root.rglob("*")) == before


@pytest.mark.long
def test_the_audit_command_finds_what_it_has_cut(capsys):
    audit.main(["--patches", "300"])
    line = capsys.readouterr().out.splitlines()[2]
    count, pairs, time, _, memory = line.strip("| ").split(" | ")
    assert count == "300" and int(pairs.replace(",", "")) > 100
    assert time.endswith(" s") and memory.endswith(" GiB")


def test_the_import_command_writes_what_it_has_made_up(capsys):
    pcam.main(["--patches", "201"])
    line = capsys.readouterr().out.splitlines()[2]
    patches, time, rate, memory = line.strip("| ").split(" | ")
    assert patches == "201" and time.endswith(" s") and int(rate.replace(",", "")) > 0
    assert memory.endswith(" MiB")


def test_the_made_up_files_of_the_import_are_written_slab_by_slab(tmp_path):
    pcam.write_files(tmp_path / "warm", 20)
    tracemalloc.start()
    pcam.write_files(tmp_path / "files", 2500)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2.5 * pcam.AT_ONCE * 96 * 96 * 3


@pytest.mark.long
def test_the_curve_command_trains_judges_and_goes_on(cut_slides, tmp_path, capsys):
    dataset, _ = cut_slides(tmp_path / "data", slides=12)
    (dataset.root / "slides.csv").unlink()
    answers = [f"{name},{number % 2}" for number, name in enumerate(dataset.test_ids)]
    (dataset.root / "test_labels.csv").write_text("\n".join(["id,label", *answers, ""]))
    options = ["--data", str(dataset.root), "--into", str(tmp_path / "kept"), "--no-pretrained"]
    options += ["--arch=squeezenet1_1", "--rng-seeds", "0", "--patches", "100", "130"]
    curve.main([*options, "--figure", str(tmp_path / "curve.png")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| 100", "islands"],
        ["| 100", "random"],
        ["| 130", "islands"],
        ["| 130", "random"],
    ]
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    curve.main(options)
    assert capsys.readouterr().out.splitlines() == lines
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == kept


@pytest.mark.long
def test_the_gpu_command_runs_whole_on_a_cpu(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    gpu.main(["--tiny", "--device", "cpu", "--whole", "1", "1", "--json", str(file)])
    found, told = json.loads(file.read_text()), capsys.readouterr().out
    assert list(found["modes"]) == list(found["passes"]) == ["plain", "fast", "resident"]
    rates = [
        rate for both in found["modes"].values() for one in both.values() for rate in one["rounds"]
    ]
    assert len(rates) == 6 and min(rates) > 0 and min(found["passes"].values()) > 0
    assert found["whole"]["epochs"] == [1, 1] and found["whole"]["stage 2"] > 0
    one, two = (found["modes"]["fast"][stage]["median"] for stage in ("stage 1", "stage 2"))
    expected = (8 * 198_022 + 3 * 600 * 128) / one + (12 * 198_022 + 100 * 128) / two
    expected += (21 * 22_003 + 12 * 57_458) / found["passes"]["fast"]
    assert found["minutes by multiplication"]["fast"] == pytest.approx(expected / 60)
    assert f"| stage 2, patches/s | {found['modes']['plain']['stage 2']['median']:,.0f} |" in told


def test_time_that_several_kernels_share_counts_once():
    assert gpu.covered([(0, 2), (1, 3), (5, 6), (5, 5.5), (2.5, 3)]) == 4
    assert gpu.covered([]) == 0


@pytest.mark.parametrize("modes", [["fast"], ["resident"]])
@pytest.mark.long
def test_the_gpu_command_measures_one_mode(tmp_path, capsys, modes):
    gpu.main(["--tiny", "--device", "cpu", "--modes", *modes])
    assert capsys.readouterr().out.count(f"| | {modes[0]} |") == 1


@pytest.mark.parametrize(
    "arguments, said",
    [(["--data", "nothing"], "nothing is no folder"), (["--device", "no"], "device='no'")],
)
def test_the_gpu_command_refuses_what_is_not_there_in_a_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        gpu.main([*arguments, "--tiny"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_epoch_command_shows_the_memory_of_workers(tmp_path, capsys):
    epoch.main(["--patches", "200", "--batch-size", "16", "--every", "5"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["1", "5", "9", "10"]
    assert all(re.fullmatch(r"\|( [\d,]+( MiB)? \|){5}", line) for line in lines[2:])


@pytest.mark.long
def test_the_robust_command_compares_each_change_with_the_plain_recipe(
    cut_slides, tmp_path, capsys
):
    dataset, _ = cut_slides(tmp_path / "data", slides=12)
    (dataset.root / "slides.csv").unlink()
    answers = [f"{name},{number % 2}" for number, name in enumerate(dataset.test_ids)]
    (dataset.root / "test_labels.csv").write_text("\n".join(["id,label", *answers, ""]))
    options = ["--data", str(dataset.root), "--into", str(tmp_path / "kept"), "--no-pretrained"]
    options += ["--arch=squeezenet1_1", "--rng-seeds", "0", "1", "--only", "stain jitter 0.2"]
    robust.main(options)
    plain, changed = capsys.readouterr().out.splitlines()[2:]
    assert plain.startswith("| as it is | ") and plain.endswith(" |  |  |")
    name, aucs, mean, difference, interval = changed.strip("| ").split(" | ")
    assert name == "stain jitter 0.2" and len(aucs.split(", ")) == 2
    assert float(difference) == pytest.approx(float(mean) - float(plain.split(" | ")[2]), abs=2e-4)
    low, high = map(float, interval.split(" to "))
    assert low < float(difference) < high


@pytest.mark.long
def test_the_slide_command_answers_and_reads(capsys):
    slide.main(["--tiny", "--arch", "squeezenet1_1", "--form", "SubIFDs"])
    cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert cells[0] == "1,536 x 1,152" and 40 < int(cells[1]) < 108
    assert all(float(cells[place]) > 0 for place in (2, 3, 4))
    assert cells[5].endswith(" s") and cells[6].endswith("%") and cells[7].endswith(" MiB")
