"""Every cell gets what the model says of its patch: the same bytes by any way, or one sentence."""

import shutil

import numpy as np
import pytest
from slide import painted
from slide.helpers import CARD, SIZE, Darkness, drop_tiles

import hcd
from hcd import InputError, predict_slide
from hcd.slide import kept, predict
from hcd.slide.libraries import open_slide


@pytest.fixture(scope="module")
def bundle(learner, tmp_path_factory):
    folder = hcd.save_bundle(learner, tmp_path_factory.mktemp("slide_model") / "model")
    return hcd.load_bundle(folder)


def answered(*arguments, **options):
    return predict_slide(*arguments, **{"progress": False, **options})


def test_each_cell_has_the_answer_of_its_own_patch(slide_file, section, darkness):
    path = slide_file()
    answer = answered(darkness, path)
    assert answer.path == str(path) and answer.size == SIZE and answer.card is CARD
    assert answer.mpp == pytest.approx((0.25, 0.25)) and answer.cell == (128, 128)
    assert answer.probabilities.dtype == np.float32
    assert answer.probabilities.shape == (SIZE[1] // 128, SIZE[0] // 128)
    with open_slide(path) as slide:
        level = slide.read(2, 0, 0, SIZE[0] // 4, SIZE[1] // 4)[0]
    cells = level.reshape(SIZE[1] // 128, 32, SIZE[0] // 128, 32, 3)
    expected = 1 - cells.astype(float).mean(axis=(1, 3, 4)) / 255
    found = np.isfinite(answer.probabilities)
    np.testing.assert_allclose(answer.probabilities[found], expected[found], atol=1e-7)
    tissue = section.tissue.reshape(cells.shape[:4]).mean(axis=(1, 3))
    assert not found[tissue == 0].any() and found[tissue > 0.9].mean() > 0.97
    assert answer.thumbnail.dtype == np.uint8 and answer.thumbnail.shape == (1536, 2048, 3)


@pytest.mark.parametrize("form", [{"sub": True}, {"ome": True}, {"alpha": True}], ids=str)
def test_each_form_of_a_slide_has_the_same_answer(slide_file, darkness, form):
    plain = answered(darkness, slide_file()).probabilities
    other = answered(darkness, slide_file(**form)).probabilities
    if "alpha" not in form:  # glass is transparent there, and the outline's cells are whiter
        assert plain.tobytes() == other.tobytes()
    both = np.isfinite(plain) & np.isfinite(other)
    assert both.sum() > 0.9 * np.isfinite(plain).sum()
    assert np.median(np.abs(plain - other)[both]) == 0


def test_half_the_spacing_is_the_same_place(section, tmp_path, darkness):
    """At 0.5 um/px and half the pixels, level 1 shows what level 2 of the other does."""
    for number, (mpp, size) in enumerate([(0.25, (3072, 2304)), (0.5, (1536, 1152))]):
        painted.save(tmp_path / f"{number}.tif", section, mpp, size, levels=3)
    fine, coarse = (answered(darkness, tmp_path / f"{number}.tif") for number in (0, 1))
    assert fine.cell == (128, 128) and coarse.cell == (64, 64)
    assert fine.probabilities.shape == coarse.probabilities.shape
    assert np.nanmax(np.abs(fine.probabilities - coarse.probabilities)) < 0.02


def test_a_resampled_slide_is_judged_at_the_models_spacing(slide_file, darkness):
    answer = answered(darkness, slide_file(), mpp=0.35)  # its levels: 0.35, 0.7, 1.4
    assert answer.mpp == (0.35, 0.35)
    assert answer.cell == pytest.approx((32 * 0.972 / 0.35,) * 2)
    rows, columns = answer.probabilities.shape
    with open_slide(slide_file()) as slide:
        level = slide.read(0, 0, 0, *SIZE)[0]
    length = answer.cell[0]
    for row, column in np.argwhere(np.isfinite(answer.probabilities))[::37]:
        if row < rows - 1 and column < columns - 1:
            y, x = round(row * length), round(column * length)
            patch = level[y : y + round(length), x : x + round(length)]
            expected = 1 - patch.astype(float).mean() / 255
            assert answer.probabilities[row, column] == pytest.approx(expected, abs=0.02)


def test_the_same_bytes_whatever_batch_size_and_threads(slide_file, bundle):
    path = slide_file()
    expected = answered(bundle, path, threads=1).probabilities
    assert len(np.unique(expected[np.isfinite(expected)])) > 100
    for batch_size, threads in ((1, 1), (40, 2), (1000, 1)):
        found = answered(bundle, path, batch_size=batch_size, threads=threads).probabilities
        assert found.tobytes() == expected.tobytes(), (batch_size, threads)


@pytest.mark.long
@pytest.mark.parametrize("arch", ["resnet18", "densenet121"])
@pytest.mark.parametrize("fast", [False, True])
def test_the_same_bytes_of_larger_networks(slide_file, arch, fast):
    from benchmarks.backends import random_bundle

    bundle, path = random_bundle(arch), slide_file(levels=3, size=(1536, 1152))
    expected = answered(bundle, path, fast=fast, threads=1).probabilities
    for batch_size, threads in ((16, 1), (48, 2), (128, 2)):
        found = answered(bundle, path, batch_size, threads=threads, fast=fast).probabilities
        assert found.tobytes() == expected.tobytes(), (batch_size, threads)


def test_an_onnx_file_answers_as_its_bundle(slide_file, bundle, tmp_path):
    model = hcd.load_onnx(hcd.export_onnx(bundle, tmp_path / "model.onnx"))
    one, other = answered(bundle, slide_file()), answered(model, slide_file())
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
    assert other.card["spacing_um_px"] == 0.972 and other.card["limits"] == one.card["limits"]
    again = answered(model, slide_file(), batch_size=16).probabilities
    assert again.tobytes() == other.probabilities.tobytes()


def stop_after(calls, error=KeyboardInterrupt):
    """Return a Darkness that stops when it is asked once more."""

    class Stopped(Darkness):
        def probabilities(self, patches):
            if len(self.calls) == calls:
                raise error
            return super().probabilities(patches)

    return Stopped()


@pytest.fixture
def small_blocks(monkeypatch):
    """Have blocks of 4 x 6 cells."""
    monkeypatch.setattr("hcd.slide.cells.BLOCK", (4, 6))


def test_an_interrupted_call_goes_on_with_the_same_bytes(
    slide_file, tmp_path, darkness, small_blocks
):
    path = slide_file()
    expected = answered(darkness, path).probabilities
    file, calls = kept.kept_file(tmp_path, path), 0
    for stop in (0, 1, 3, 4):
        model = stop_after(stop)
        with pytest.raises(KeyboardInterrupt):
            answered(model, path, resume=tmp_path)
        assert file.is_file() and len(model.calls) == stop
        calls += stop
    answer = answered(model := Darkness(), path, batch_size=16, resume=tmp_path)
    assert answer.probabilities.tobytes() == expected.tobytes()
    assert len(model.calls) < sum(-(-n // 16) for n in darkness.calls)
    again = answered(model := Darkness(), path, resume=tmp_path)
    assert not model.calls and again.probabilities.tobytes() == expected.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_blocks_do_not_show(slide_file, darkness, monkeypatch):
    expected = answered(darkness, slide_file()).probabilities
    for block in ((1, 1), (5, 7), (1000, 1000)):
        monkeypatch.setattr("hcd.slide.cells.BLOCK", block)
        found = answered(darkness, slide_file()).probabilities
        assert found.tobytes() == expected.tobytes()


def test_what_another_call_has_left_is_refused(
    slide_file, tmp_path, darkness, bundle, small_blocks, refused
):
    path = tmp_path / "a.tif"
    shutil.copy(slide_file(), path)
    with pytest.raises(KeyboardInterrupt):
        answered(stop_after(2), path, resume=tmp_path)
    file = kept.kept_file(tmp_path, path)
    before = file.read_bytes()
    with refused(InputError, file, "another mpp", "remove it"):
        answered(darkness, path, mpp=0.24, resume=tmp_path)
    with refused(InputError, file, "another model", "remove it"):
        answered(bundle, path, resume=tmp_path)
    shutil.copy(slide_file(compression="jpeg"), path)
    with refused(InputError, file, "another slide", "remove it"):
        answered(darkness, path, resume=tmp_path)
    assert file.read_bytes() == before
    for content in (b"", b"text", before[:100]):
        file.write_bytes(content)
        with refused(InputError, file, "damaged", "remove it"):
            answered(darkness, path, resume=tmp_path)
        assert file.read_bytes() == content


@pytest.mark.parametrize("key", ["[" * 50_000, "3", "null"])
def test_a_file_of_a_strangers_is_refused(slide_file, tmp_path, darkness, refused, key):
    np.savez(tmp_path / "slide.unfinished.npz", key=key)
    path = shutil.copy(slide_file(), tmp_path / "slide.tif")
    with refused(InputError, "slide.unfinished.npz", "remove it"):
        answered(darkness, path, resume=tmp_path)


def test_a_file_of_pickles_is_not_run(slide_file, tmp_path, darkness, refused):
    file = kept.kept_file(tmp_path, slide_file())
    np.savez(file, key=np.array(object()), done=0, probabilities=0)
    with refused(InputError, file, "damaged"):
        answered(darkness, slide_file(), resume=tmp_path)


def test_nothing_is_read_before_it_is_known_that_progress_can_be_kept(
    slide_file, tmp_path, darkness
):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file"):
        answered(darkness, slide_file(), resume=tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="is a link"):
        answered(darkness, slide_file(), resume=tmp_path / "link")
    assert not darkness.calls


@pytest.mark.parametrize("sub", [False, True])
@pytest.mark.parametrize("level", [0, 2])
def test_a_level_that_the_file_lacks(slide_file, tmp_path, darkness, refused, level, sub):
    """Level 2 is read, and the overview is made of level 0, the smallest one of its size."""
    path = shutil.copy(slide_file(sub=sub), tmp_path / "a.tif")
    drop_tiles(path, level)
    with refused(InputError, path, f"level {level}", "is missing", "get it again"):
        answered(darkness, path, resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_one_tile_of_tissue_that_the_file_lacks(slide_file, tmp_path, darkness, refused):
    path = shutil.copy(slide_file(), tmp_path / "a.tif")
    drop_tiles(path, 2, [4])  # of 3 x 3, the middle one
    with refused(InputError, path, "level 2", "is missing"):
        answered(darkness, path)


def test_glass_that_no_level_has_is_glass(section, tmp_path, darkness):
    """A sparse slide: tiles without tissue are left out on every level."""
    rgb = np.where(section.tissue[..., None], section.rgb, 255).astype(np.uint8)
    rgb[:, :256] = 255  # one tile's width of level 2
    part = painted.Painted(rgb, section.tissue, section.places)
    whole = painted.save(tmp_path / "whole.tif", part, size=SIZE, levels=3)
    sparse = shutil.copy(whole, tmp_path / "sparse.tif")
    drop_tiles(sparse, 2, [0, 3, 6])
    drop_tiles(sparse, 1, [y * 6 + x for y in range(5) for x in (0, 1)])
    drop_tiles(sparse, 0, [y * 12 + x for y in range(9) for x in range(4)])
    one, other = answered(darkness, whole), answered(darkness, sparse)
    assert np.isfinite(one.probabilities).sum() > 50
    assert one.probabilities.tobytes() == other.probabilities.tobytes()


def test_what_cannot_be_answered(section, slide_file, tmp_path, darkness, refused):
    glass = painted.Painted(np.full_like(section.rgb, 244), section.tissue, section.places)
    path = painted.save(tmp_path / "glass.tif", glass, size=(768, 576), mpp=0.972, levels=2)
    with refused(InputError, path, "no tissue"):
        answered(darkness, path, resume=tmp_path)
    unstated = slide_file(stated=False)
    with refused(InputError, unstated, "--mpp"):
        answered(darkness, unstated, resume=tmp_path)
    assert np.isfinite(answered(darkness, unstated, mpp=0.25).probabilities).any()
    dot = painted.Painted(np.full((1, 1, 3), 99, np.uint8), section.tissue, section.places)
    tiny = painted.save(tmp_path / "tiny.tif", dot, size=(1, 1), levels=1)
    with refused(InputError, tiny, "1 x 1 px", "one cell"):
        answered(darkness, tiny, resume=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["glass.tif", "tiny.tif"]


@pytest.mark.parametrize("mpp", [0, -1, float("nan"), float("inf"), "0.25", True])
def test_nonsense_for_a_spacing(slide_file, darkness, refused, mpp):
    with refused(InputError, f"mpp={mpp!r}", "give"):
        answered(darkness, slide_file(), mpp=mpp)


def test_settings_that_cannot_be_used(slide_file, darkness, bundle, refused):
    for batch_size in (0, -1, 1.5, True, "64"):
        with refused(InputError, f"batch_size={batch_size!r}"):
            answered(darkness, slide_file(), batch_size=batch_size)
    with refused(InputError, "fast=True"):
        answered(darkness, slide_file(), fast=True)
    with refused(InputError, "temperature"):
        answered(bundle, slide_file(), calibrated=True)
    darkness.original_size = 30
    with refused(InputError, "30 px", "centre of 32"):
        answered(darkness, slide_file())
    with refused(TypeError, "Bundle"):
        answered(object(), slide_file())
    darkness.original_size, darkness.card = 96, None
    with refused(InputError, "at which spacing"):
        answered(darkness, slide_file())


def test_a_model_whose_answer_is_no_number(slide_file, darkness, tmp_path, refused):
    darkness.probabilities = lambda patches: np.full(len(patches), np.nan)
    with refused(InputError, "not a number", slide_file()):
        answered(darkness, slide_file(), resume=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_small_slide_of_one_level_is_answered(slide_file, darkness):
    one = answered(darkness, slide_file(levels=1))
    many = answered(darkness, slide_file())
    assert one.probabilities.shape == (
        -(-SIZE[1] // (32 * 0.972 / 0.25)),
        -(-SIZE[0] // (32 * 0.972 / 0.25)),
    )
    mean, other = np.nanmean(one.probabilities), np.nanmean(many.probabilities)
    assert mean == pytest.approx(other, abs=0.02)


def test_the_bar_counts_cells_and_goes_on_where_it_was(
    slide_file, darkness, tmp_path, monkeypatch, small_blocks
):
    bars = []

    def opened(total, title, shown, **options):
        bars.append((bar(total, title, False), total, options["initial"], title))
        return bars[-1][0]

    bar = predict.progress_bar
    monkeypatch.setattr(predict, "progress_bar", opened)
    path = shutil.copy(slide_file(), tmp_path / "two\nlines.tif")
    with pytest.raises(KeyboardInterrupt):
        answered(stop_after(3), path, resume=tmp_path)
    answer = answered(darkness, path, resume=tmp_path)
    cells = np.isfinite(answer.probabilities).sum()
    assert [total for _, total, *_ in bars] == [cells, cells]
    assert bars[0][2] == 0 < bars[1][2] < cells and bars[0][3] == "two\\nlines.tif"
