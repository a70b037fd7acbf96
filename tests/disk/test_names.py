"""Names of files take the memory of a number each and are read as text."""

import copy
import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from hcd import InputError
from hcd.disk.names import Names

IDS = np.array([patch_id.encode() for patch_id in ("b1", "a-long_one", "Ä", "a" * 40)])
EXPECTED = [f"train/{patch_id.decode()}.tif" for patch_id in IDS.tolist()]


@pytest.fixture
def names():
    return Names("train", IDS)


def test_each_is_a_str_however_it_is_asked_for(names):
    assert len(names) == 4 and names[-1] == EXPECTED[-1] and EXPECTED[2] in names
    for found in (names.tolist(), list(names), [names[k] for k in range(4)], [*names[::-1]][::-1]):
        assert found == EXPECTED and all(type(name) is str for name in found)
    assert names[np.int64(1)] == EXPECTED[1]
    assert "train/b1.tif" in repr(names) and repr(names).endswith("; 4)")


def test_an_index_beyond_the_end_is_refused(names):
    for k in (4, -5):
        with pytest.raises(IndexError):
            names[k]


@pytest.mark.parametrize(
    "key, rows",
    [
        (slice(1, 3), [1, 2]),
        ([3, 0], [3, 0]),
        (np.array([2, 2]), [2, 2]),
        (np.array([1, 0, 0, 1], bool), [0, 3]),
        ([], []),
    ],
)
def test_a_part_is_of_names_again(names, key, rows):
    part = names[key]
    assert type(part) is Names and part.tolist() == [EXPECTED[row] for row in rows]


def test_numpy_and_pandas_are_given_text(names):
    assert np.array(names).tolist() == np.asarray(names, object).tolist() == EXPECTED
    assert np.array(names).dtype.kind == "U"
    assert (names == EXPECTED[1]).tolist() == [False, True, False, False]
    assert (names != np.array(EXPECTED)).tolist() == [False] * 4
    assert (names == names).all() and (np.array(EXPECTED) == names).all()
    assert np.char.add(names, ".gz").tolist() == [f"{name}.gz" for name in EXPECTED]
    assert np.concatenate([names, names[:1]]).tolist() == [*EXPECTED, EXPECTED[0]]
    assert np.isin(names, EXPECTED[:1]).tolist() == [True] + [False] * 3
    assert np.sort(names).tolist() == sorted(names) == sorted(EXPECTED)
    assert pd.Series(names).tolist() == pd.DataFrame({"file": names})["file"].tolist() == EXPECTED
    assert np.array(names[:0]).shape == (0,)


def test_they_have_the_shape_and_the_type_of_the_array_of_texts(names):
    array = np.asarray(names)
    assert (names.shape, names[1:].shape, names.dtype) == ((4,), (3,), array.dtype)
    assert np.array_equal(np.asarray(names).astype(names.dtype), array)


def test_they_have_what_the_array_of_texts_has(names):
    array = np.asarray(names)
    assert (names.size, names.ndim, names.nbytes) == (4, 1, array.nbytes)
    assert names.astype(object).tolist() == names.reshape(2, 2).ravel().tolist() == EXPECTED
    assert names.argsort().tolist() == array.argsort().tolist()
    assert names[:, None].tolist() == [[name] for name in EXPECTED]
    assert not hasattr(names, "iloc") and not hasattr(names, "__len_hint__")


@pytest.mark.parametrize("name", ["sort", "fill", "append"])
def test_what_would_write_into_an_array_that_nobody_has_is_refused(names, name):
    with pytest.raises(AttributeError, match=f"(?s){name}.*numpy.array"):
        getattr(names, name)
    assert names.tolist() == EXPECTED


def test_a_part_is_written_through_and_a_copy_is_not(names):
    copies = [names.copy(), copy.copy(names), copy.deepcopy(names), names[[0, 1, 2, 3]]]
    names[1:3][0] = EXPECTED[3]
    assert names[1] == EXPECTED[3]
    assert all(one.tolist() == EXPECTED for one in copies)


def test_names_are_written_over_others(names):
    twin = names.copy()
    names[:] = names[::-1]
    assert names.tolist() == EXPECTED[::-1] and twin.tolist() == EXPECTED
    names[0] = EXPECTED[1]
    names[2:] = np.array([EXPECTED[3], EXPECTED[2]])
    assert names.tolist() == [EXPECTED[row] for row in (1, 2, 3, 2)]
    names[[0, 1]] = EXPECTED[0]
    assert names[:2].tolist() == EXPECTED[:1] * 2
    other = Names("train", IDS[::-1].copy())
    other[:2] = names[2:]  # rows of another array of ids
    assert other.tolist() == [*(EXPECTED[row] for row in (3, 2)), *EXPECTED[1::-1]]


@pytest.mark.parametrize(
    "name", ["train/c.tif", "test/b1.tif", "b1", "train/b1.png", "/x/train/b1.tif", "train/b1"]
)
def test_a_name_that_the_data_set_has_not_is_refused(names, refused, name):
    with refused(InputError, name, "train/<id>.tif", "numpy.array"):
        names[1] = name
    with refused(InputError, name, "numpy.array"):
        names[1:3] = [EXPECTED[0], name]
    assert names.tolist() == EXPECTED


def test_they_are_sent_to_another_process(names):
    one, other = pickle.loads(pickle.dumps((names, names[2:])))
    assert one.tolist() == EXPECTED and other.tolist() == EXPECTED[2:] and one.ids is other.ids


def test_a_name_takes_the_memory_of_a_number():
    ids = np.full(100_000, b"f" * 40)
    tracemalloc.start()
    try:
        parts = [Names("train", ids), Names("train", ids, np.arange(50_000))]
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(parts[0]) + len(parts[1]) == 150_000
    assert kept < 5 * 150_000 and most < 20 * 150_000


def test_many_names_are_written_in_the_time_of_one_search():
    class Counted(np.ndarray):
        searches = 0

        def __eq__(self, other):
            Counted.searches += 1
            return np.asarray(self) == other

    ids = np.array([f"{k:05}".encode() for k in range(500)]).view(Counted)
    names = Names("train", ids)
    expected = names.tolist()[::-1]
    names[:] = expected
    assert names.tolist() == expected and Counted.searches <= 1
