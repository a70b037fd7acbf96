"""A table of slides names every labelled patch once, and nothing else."""

import gzip
from dataclasses import replace

import pytest

from hcd import InputError, Recipe, open_dataset, read_slides


@pytest.fixture
def cut(cut_slides, tmp_path):
    return cut_slides(tmp_path / "data")


def write(path, rows, header="id,wsi"):
    path.write_text("\n".join([header, *rows, ""]))
    return path


def lines(slides):
    return [f"{patch_id},{slide}" for patch_id, slide in slides.items()]


def test_every_patch_has_its_slide_in_any_order_of_rows_and_columns(cut, tmp_path):
    dataset, slides = cut
    rows = [f"x,{slide},{patch_id}" for patch_id, slide in reversed(slides.items())]
    table = read_slides(write(tmp_path / "map.csv", rows, "note,wsi,id"), dataset)
    assert dict(zip(table["id"], table["wsi"])) == slides


def test_the_data_folders_own_table_is_taken_where_none_is_named(cut, tmp_path):
    dataset, slides = cut
    own = dataset.root / "slides.csv"
    assert len(read_slides(None, dataset)) == len(read_slides("", dataset)) == len(slides)
    (dataset.root / "slides.csv.gz").write_bytes(gzip.compress(own.read_bytes()))
    own.unlink()
    assert len(read_slides(None, dataset)) == len(slides)
    (dataset.root / "slides.csv.gz").unlink()
    assert read_slides(None, dataset) is None


def test_test_patches_may_be_left_out_all_of_them(cut, tmp_path, refused):
    dataset, slides = cut
    labelled = {name: slides[name] for name in dataset.labels["id"]}
    path = tmp_path / "map.csv"
    assert len(read_slides(write(path, lines(labelled)), dataset)) == len(labelled)
    some = {**labelled, dataset.test_ids[0]: "x"}
    with refused(InputError, "the test id", f"of {len(dataset.test_ids)} are"):
        read_slides(write(path, lines(some)), dataset)


def test_a_table_that_does_not_fit(cut, tmp_path, refused):
    dataset, slides = cut
    rows, path = lines(slides), tmp_path / "map.csv"
    labelled = dataset.labels["id"].iloc[0]
    for changed, words in [
        ([*rows, "other,slide_1"], "id other is none of"),
        ([row for row in rows if labelled not in row], f"the labelled id {labelled} is missing"),
        ([*rows, rows[0]], "is used twice"),
        ([*rows[1:], rows[0].split(",")[0] + ","], "has no wsi"),
        (["other,slide_1"], "id other is none of"),
        ([], "no rows"),
    ]:
        with refused(InputError, path, words):
            read_slides(write(path, changed), dataset)
    with refused(InputError, "no 'wsi'"):
        read_slides(write(path, rows, "id,slide"), dataset)
    with refused(FileNotFoundError, "nowhere.csv"):
        read_slides(tmp_path / "nowhere.csv", dataset)
    with refused(FileNotFoundError, f"{tmp_path} is a folder", "name another file"):
        read_slides(tmp_path, dataset)


def test_an_own_table_that_does_not_fit_is_left_out_with_a_warning(cut, refused):
    """As an import of PatchCamelyon without every _meta.csv leaves it; nobody asked for it."""
    dataset, slides = cut
    write(dataset.root / "slides.csv", lines(slides)[1:])
    with pytest.warns(UserWarning, match="slides are not told apart: .* is missing"):
        assert read_slides(None, dataset) is None
    with refused(InputError, "is missing"):
        read_slides(dataset.root / "slides.csv", dataset)
    with refused(InputError, "is missing"):
        read_slides(None, dataset, Recipe(split="slides"))


def test_a_split_by_slides_needs_a_table(sample, refused):
    with refused(InputError, "split='slides'", sample.root):
        read_slides(None, sample, replace(Recipe(), split="slides"))
    assert read_slides(None, open_dataset(sample.root)) is None
