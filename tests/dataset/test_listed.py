"""Tables and tuples that are made when somebody asks for them are what they always were."""

import copy
import dataclasses
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcd import InputError, open_dataset
from hcd.dataset import listed
from hcd.dataset.listed import Listed, listed_in, read_listed
from hcd.dataset.tables import read_ids, read_labels

FIELDS = ("labels", "test_ids", "sample_ids")
TEXTS = st.lists(st.text("ab-_ü,\n .", max_size=5), min_size=1, max_size=8)
LABELS = st.lists(st.sampled_from(["0", "1", "1.0", "2", ""]), min_size=8, max_size=8)


@pytest.fixture
def dataset(sample):
    return open_dataset(sample.root)


def unasked(dataset):
    return [field for field in FIELDS if listed_in(dataset, field) is not None]


@settings(deadline=None, max_examples=200)
@given(ids=TEXTS, labels=LABELS, labelled=st.booleans())
def test_a_table_is_read_as_the_readers_of_texts_do(tmp_path_factory, ids, labels, labelled):
    """The same ids and labels in their order, or the very same refusal."""
    path = tmp_path_factory.mktemp("table") / "train_labels.csv"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(listed, "CHUNK", 3)
        patched.setattr(listed, "USUAL_ID", 2)
        pd.DataFrame({"id": ids, "label": labels[: len(ids)]}).to_csv(path, index=False)
        try:
            expected = (read_labels if labelled else read_ids)(path)
        except InputError as error:
            with pytest.raises(InputError) as found:
                read_listed(path, labelled)
            assert str(found.value) == str(error)
            return
        table, ordered = read_listed(path, labelled)
        names = expected["id"].tolist()
        assert ordered.tolist() == sorted(name.encode() for name in names)
        if labelled:
            pd.testing.assert_frame_equal(table.made(), expected)
        else:
            assert table.made() == tuple(names) and table.labels is None
        assert table.ids.itemsize == max(len(name.encode()) for name in names)


def test_what_is_made_takes_the_place_of_what_it_was_made_of(dataset):
    assert unasked(dataset) == [*FIELDS]
    labels = dataset.labels
    assert labels is dataset.labels and unasked(dataset) == ["test_ids", "sample_ids"]
    assert type(dataset.test_ids) is type(dataset.sample_ids) is tuple and unasked(dataset) == []


def test_arrays_are_those_of_the_tables_whether_they_were_asked_for_or_not(dataset):
    def arrays():
        sides = [dataset.id_bytes(side).tolist() for side in ("train", "test")]
        paths = [dataset.train_paths, dataset.test_paths]
        return sides, dataset.label_values.tolist(), paths, dataset.fingerprint

    before = arrays()
    assert unasked(dataset) == [*FIELDS]
    assert before[1] == dataset.labels["label"].tolist()
    assert [name.decode() for name in before[0][1]] == list(dataset.test_ids)
    assert arrays() == before


def test_threads_that_ask_at_once_have_the_same_table(sample, monkeypatch):
    dataset, made, begun = open_dataset(sample.root), Listed.made, Barrier(2)

    def slowly(listed):
        time.sleep(0.1)
        return made(listed)

    def ask(_):
        begun.wait()
        return dataset.labels

    monkeypatch.setattr(Listed, "made", slowly)
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(ask, range(2))
    assert one is other is dataset.labels


def test_ids_that_are_no_texts_are_refused(sample, refused):
    labels = open_dataset(sample.root).labels
    for other in (7, None, float("nan")):
        ids = labels["id"].astype(object)
        ids[2] = other
        dataset = dataclasses.replace(sample, labels=labels.assign(id=ids))
        with refused(InputError, f"an id is {other!r}", "text", "dtype="):
            dataset.id_bytes("train")


def test_a_table_that_was_written_into_is_the_truth(dataset):
    before = dataset.fingerprint
    dataset.labels.loc[0, "label"] = 1 - dataset.labels["label"][0]
    assert dataset.label_values.tolist() == dataset.labels["label"].tolist()
    assert dataset.fingerprint != before


def test_nobody_writes_into_what_is_shared(dataset):
    for array in (dataset.id_bytes("train"), dataset.id_bytes("test"), dataset.label_values):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


@pytest.mark.parametrize("asked", [(), ("labels",), FIELDS])
def test_it_is_copied_replaced_and_sent_as_before(sample, asked):
    dataset = open_dataset(sample.root)
    for field in asked:
        getattr(dataset, field)
    twins = [
        copy.copy(dataset),
        copy.deepcopy(dataset),
        pickle.loads(pickle.dumps(dataset)),
        dataclasses.replace(dataset, no_test="x"),
    ]
    for twin in twins:
        assert twin.labels.equals(sample.labels) and twin.root == dataset.root
        assert (twin.test_ids, twin.sample_ids) == (sample.test_ids, sample.sample_ids)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.test_ids = ()
    with pytest.raises(TypeError, match="labels"):
        type(dataset)(dataset.root)


def test_pandas_is_used_on_labels_as_ever(dataset):
    labels = dataset.labels
    first = labels["id"][0]
    assert labels.id.str.len().eq(40).all() and (labels.id == first).sum() == 1
    assert labels[labels["id"].isin([first])].index.tolist() == [0]
    assert labels.groupby("label").size().sum() == len(labels)
    assert len(labels.merge(pd.DataFrame({"id": [first], "wsi": ["a"]}), on="id")) == 1
    assert labels["label"].dtype == np.int64


def test_no_labels_are_texts():
    assert Listed(np.array([b"b", b"a"])).made() == ("b", "a")
    assert Listed(np.array([], "S1")).made() == ()
