"""The databunch hands out the right patches, normalised, in the right order."""

import gc
import hashlib
import os
import random
import shutil
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basic_data import DatasetType

import hcd
from hcd import Recipe, make_databunch, read_cropped_image
from hcd.data import CroppedImageList
from hcd.engine.device import (
    FILES_A_WORKER,
    FILES_BESIDE,
    find_device,
    require_room_for_workers,
)


@pytest.fixture(scope="module")
def plain(sample, small_recipe, split):
    """Databunch without augmentation, so that what it hands out can be computed."""
    return make_databunch(sample, small_recipe.plain(), split[1], num_workers=0, device="cpu")


def expected_batch(paths, recipe):
    """Return the normalised centre crops of patches in float64, (N, 3, crop, crop)."""
    crops = np.stack([hcd.read_image(path)[3:93, 3:93] / 255 for path in paths])
    return ((crops - recipe.mean) / recipe.std).transpose(0, 3, 1, 2)


def read_all(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_items_are_the_files_of_the_split_in_table_order(sample, split, databunch):
    for part, rows in ((databunch.train_ds, np.sort(split[0])), (databunch.valid_ds, split[1])):
        assert part.x.items.tolist() == [
            f"train/{patch_id}.tif" for patch_id in sample.labels["id"][rows]
        ]
        assert [part.y[n].data for n in range(len(part))] == sample.labels["label"][rows].tolist()


def test_c3_items_are_files_below_the_data_folder(sample, databunch):
    items = [*databunch.train_ds.items, *databunch.valid_ds.items, *databunch.test_ds.items]
    assert len(items) == 72 and all((sample.root / item).is_file() for item in items)
    assert not any(item.startswith("/") for item in items)


def linked_folder(root, source, rows):
    """Fill a folder with so many labelled patches, all of them hard links to one, and a quarter of
    that to predict."""
    for side, table, count in (
        ("train", "train_labels.csv", rows),
        ("test", "sample_submission.csv", rows // 4),
    ):
        (root / side).mkdir(parents=True)
        ids = [hashlib.sha1(f"{side}{n}".encode()).hexdigest() for n in range(count)]
        for patch_id in ids:
            os.link(source, root / side / f"{patch_id}.tif")
        pd.DataFrame({"id": ids, "label": np.arange(count) % 2}).to_csv(root / table, index=False)
    return root


def test_set_up_takes_few_bytes_a_patch_until_the_table_is_asked_for(sample, tmp_path):
    """2.2 million patches have to be set up within 1.2 GiB, of which the libraries take 0.82. What
    stays of each is its id, a row, a label; for a while the split has a Python number of each, and
    the first pass another."""
    source = shutil.copy(sample.train_paths[0], tmp_path / "a.tif")
    recipe, kept, most, table = Recipe(batch_size=16), [], [], []
    for rows in (200, 11_000, 16_000):  # of the first, the modules that it loads
        root = linked_folder(tmp_path / str(rows), source, rows)
        gc.collect()
        tracemalloc.start()
        try:
            dataset = hcd.open_dataset(root)
            _, valid_idx = hcd.split_dataset(dataset, recipe)
            data = make_databunch(dataset, recipe, valid_idx, num_workers=0, device="cpu")
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0])
            most.append(tracemalloc.get_traced_memory()[1])
            assert len(dataset.labels) == rows == len(data.train_ds) + len(data.valid_ds)
            gc.collect()
            table.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    kept, most, table = ((two - one) / 5_000 for _, one, two in (kept, most, table))
    assert kept < 110 and most < 200
    assert table > kept + 80  # the texts of the table, which nothing before had asked for


def test_test_items_stand_in_sorted_order(sample, databunch):
    assert databunch.test_ds.items.tolist() == [
        f"test/{patch_id}.tif" for patch_id in sorted(sample.sample_ids)
    ]


def test_classes_and_device(databunch):
    assert (
        databunch.classes == [0, 1] and databunch.c == 2 and databunch.device == torch.device("cpu")
    )
    assert databunch.path == databunch.train_ds.path


def test_shapes_types_and_how_many_batches(databunch):
    loaders = {
        "train": (databunch.train_dl, [8] * 5),
        "valid": (databunch.valid_dl, [8, 7]),
        "test": (databunch.test_dl, [8, 4]),
        "fix": (databunch.fix_dl, [8] * 5 + [5]),
        "single": (databunch.single_dl, [1] * 15),
    }
    for name, (loader, sizes) in loaders.items():
        batches = list(loader)
        assert [tuple(x.shape) for x, _ in batches] == [(size, 3, 90, 90) for size in sizes], name
        assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in batches), name
        assert all(not inner.pin_memory or torch.cuda.is_available() for inner in (loader.dl,)), (
            name
        )


def test_without_a_test_set_there_is_no_test_loader(copy_of_sample, small_recipe, split, learner):
    shutil.rmtree(copy_of_sample / "test")
    dataset = hcd.open_dataset(copy_of_sample)
    data = hcd.make_databunch(dataset, small_recipe, split[1], num_workers=0, device="cpu")
    assert data.test_dl is None
    assert next(iter(data.valid_dl))[0].shape == (8, 3, 90, 90)
    trained = hcd.get_learner(data, small_recipe, path=copy_of_sample.parent)
    for call in (
        lambda: hcd.predict_tta(trained, progress=False),
        lambda: hcd.write_submission(copy_of_sample / "x.csv", dataset, trained, [[0.5, 0.5]]),
    ):
        with pytest.raises(hcd.InputError, match="no test set.*has test/ and sample_submission"):
            call()
    assert not (copy_of_sample / "x.csv").exists()


def test_values_are_normalised_crops_with_their_labels(sample, split, plain, small_recipe):
    x, y = read_all(plain.valid_dl)
    assert (
        np.abs(
            x.numpy() - expected_batch([sample.train_paths[row] for row in split[1]], small_recipe)
        ).max()
        < 2e-6
    )
    assert y.tolist() == sample.labels["label"][split[1]].tolist()
    x, y = read_all(plain.test_dl)
    assert (
        np.abs(x.numpy() - expected_batch(sample.test_paths, small_recipe)).max() < 2e-6
        and not y.any()
    )


def test_normalisation_is_the_recipes(sample, split, small_recipe):
    other = hcd.Recipe.sample(batch_size=8, mean=(0.1, 0.2, 0.3), std=(1, 2, 4)).plain()
    x, _ = read_all(make_databunch(sample, other, split[1], num_workers=0, device="cpu").test_dl)
    assert np.abs(x.numpy() - expected_batch(sample.test_paths, other)).max() < 2e-6


def test_training_batches_are_shuffled_and_without_repeats(sample, split, plain, small_recipe):
    rows = np.sort(split[0])
    known = expected_batch([sample.train_paths[row] for row in rows], small_recipe)[
        :, :, 0
    ].reshape(45, 270)
    orders = []
    for _ in range(2):
        x, y = read_all(plain.train_dl)
        apart = np.abs(x[:, :, 0].reshape(40, 1, 270).numpy() - known).max(axis=2)  # (read, known)
        found = apart.argmin(axis=1)
        assert apart.min(axis=1).max() < 2e-6 and len(set(found)) == 40
        assert y.tolist() == sample.labels["label"][rows[found]].tolist()
        orders.append(found.tolist())
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


@pytest.mark.parametrize("part", ["train_ds", "valid_ds", "test_ds"])
def test_k3_each_read_is_a_fresh_draw_in_validation_and_test_too(databunch, plain, part):
    reads = [getattr(databunch, part)[2][0].data for _ in range(4)]
    assert all(not torch.equal(reads[0], other) for other in reads[1:])
    once, again = (getattr(plain, part)[2][0].data for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize("part", ["train_ds", "valid_ds", "test_ds"])
def test_an_item_is_the_readers_crop_drawn_from_pythons_random(databunch, part):
    dataset = getattr(databunch, part)
    assert isinstance(dataset.x, CroppedImageList)
    random.seed(5)
    item = dataset[1][0].data
    expected = read_cropped_image(dataset.path / dataset.x.items[1], rng=random.Random(5))
    assert item.dtype == torch.float32 and np.array_equal(item.numpy(), expected.transpose(2, 0, 1))


def test_the_recipe_goes_with_every_part(sample, split):
    recipe = Recipe.sample(crop_size=64, max_shift=16, batch_size=8)
    data = make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    for part in (data.train_ds, data.valid_ds, data.test_ds, data.fix_ds):
        assert part.x.recipe is recipe and part[0][0].data.shape == (3, 64, 64)


def test_a_batch_as_large_as_the_training_set_is_one_batch_and_a_larger_one_is_refused(
    sample, split, refused
):
    data = make_databunch(
        sample, Recipe.sample(batch_size=45), split[1], num_workers=0, device="cpu"
    )
    assert [len(y) for _, y in data.train_dl] == [45]
    with refused(ValueError, "batch_size=46", "45 training patches", "give 45 or less"):
        make_databunch(sample, Recipe.sample(batch_size=46), split[1], num_workers=0)


@pytest.mark.parametrize("valid_idx", [[], [60], [-1], [3, 3], [0.5], np.arange(60) < 15], ids=str)
def test_rows_that_are_none_or_named_twice_are_refused(sample, small_recipe, refused, valid_idx):
    with refused(ValueError, f"{len(valid_idx)} entries", "rows 0 to 59"):
        make_databunch(sample, small_recipe, valid_idx, num_workers=0)


def test_both_lists_of_a_split_are_not_one(sample, small_recipe, split, refused):
    with refused(hcd.InputError, "tuple of 2 lists", "second", "split_dataset"):
        make_databunch(sample, small_recipe, (split[0][:20], split[1]))


@pytest.mark.parametrize("asked", [False, True])
def test_labels_stand_under_their_index_in_the_data_sets_table(sample, split, small_recipe, asked):
    dataset = hcd.open_dataset(sample.root)
    if asked:
        table = dataset.labels.set_index(np.arange(len(dataset.labels)) * 2 + 5)
        dataset = replace(dataset, labels=table)
    data = make_databunch(dataset, small_recipe, split[1], 0, "cpu")
    for items in (data.train_ds.x, data.valid_ds.x):
        found = dataset.labels.loc[items.inner_df.index]
        assert [f"train/{one}.tif" for one in found["id"]] == items.items.tolist()
        assert found["label"].equals(items.inner_df["label"])  # int64, too


@pytest.mark.parametrize("kind", [tuple, list, set, iter, np.asarray, pd.Index, torch.tensor])
def test_row_positions_of_every_kind_name_the_same_rows(sample, small_recipe, split, kind):
    data = make_databunch(sample, small_recipe, kind(split[1].tolist()), 0, "cpu")
    assert sorted(data.valid_ds.items) == sorted(
        f"train/{name}.tif" for name in sample.labels["id"].iloc[split[1]]
    )


def test_ids_are_no_row_positions(sample, small_recipe, refused):
    with refused(ValueError, "valid_idx with 9 entries", "give whole numbers"):
        make_databunch(sample, small_recipe, sample.labels["id"].tolist()[:9], num_workers=0)


@pytest.mark.parametrize("change", [lambda labels: labels.astype(float), lambda labels: labels / 0])
def test_labels_that_fastai_would_train_a_regression_of(
    sample, small_recipe, split, refused, change
):
    other = replace(sample, labels=sample.labels.assign(label=change(sample.labels["label"])))
    with refused(ValueError, "labels are float64", "regression", "astype(int)"):
        make_databunch(other, small_recipe, split[1], num_workers=0)


def test_show_batch_draws_denormalised_crops(plain):
    import matplotlib.pyplot as plt

    plain.show_batch(rows=2, figsize=(4, 4), ds_type=DatasetType.Valid)
    images = [axis.images[0].get_array() for axis in plt.gcf().axes]
    crops = [
        hcd.read_image(plain.path / item)[3:93, 3:93] / 255 for item in plain.valid_ds.x.items[:4]
    ]
    assert len(images) == 4 and all(
        np.abs(image - crop).max() < 1e-5 for image, crop in zip(images, crops)
    )


def test_two_workers_hand_out_the_same_patches_in_the_same_order_as_none(
    sample, split, plain, small_recipe
):
    workers = make_databunch(sample, small_recipe.plain(), split[1], num_workers=2, device="cpu")
    assert workers.train_dl.num_workers == 2 and plain.train_dl.num_workers == 0
    for here, there in ((plain.valid_dl, workers.valid_dl), (plain.test_dl, workers.test_dl)):
        assert all(torch.equal(a, b) for a, b in zip(read_all(here), read_all(there)))
    assert len(read_all(workers.train_dl)[1]) == 40


def test_two_workers_draw_afresh_each_pass_and_unlike_each_other(sample, split, small_recipe):
    one = sample.labels["id"][split[1][0]]
    twins = hcd.Dataset(sample.root, sample.labels, (one,) * 16, (one,) * 16)
    os.symlink(sample.train_path(one), sample.test_path(one))
    try:
        data = make_databunch(twins, small_recipe, split[1], num_workers=2, device="cpu")
        passes = [read_all(data.test_dl)[0] for _ in range(2)]
    finally:
        sample.test_path(one).unlink()
    crops = [crop.numpy().tobytes() for batch in passes for crop in batch]
    # one patch, read 32 times by two workers in two passes
    assert len(crops) == 32 and len(set(crops)) > 24


# torch's, about more workers than this machine has cores
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("cpus, workers", [(1, 1), (3, 3), (64, 16)])
def test_workers_follow_the_usable_cpus_when_none_are_named(
    sample, split, small_recipe, monkeypatch, cpus, workers
):
    monkeypatch.setattr("hcd.data.usable_cpus", lambda: cpus)
    data = make_databunch(sample, small_recipe, split[1], device="cpu")
    for loader in (data.train_dl, data.valid_dl, data.test_dl):
        assert loader.num_workers == workers


def test_a_patch_that_cannot_be_read_any_more_stops_the_reading(
    copy_of_sample, split, small_recipe, refused
):
    data = make_databunch(
        hcd.open_dataset(copy_of_sample), small_recipe, split[1], num_workers=0, device="cpu"
    )
    path = copy_of_sample / data.valid_ds.x.items[3]
    open(path, "wb").close()
    with refused(ValueError, path, "0 bytes"):
        list(data.valid_dl)


def rows_of(sample, label):
    return np.flatnonzero(sample.labels["label"] == label)


def test_a_side_without_both_labels_is_refused(sample, small_recipe, refused):
    negatives, tumours = rows_of(sample, 0), rows_of(sample, 1)
    for valid_idx, side in (
        ([*negatives, tumours[0]], "training"),
        (tumours[:4], "validation"),
        (negatives[:1], "validation side has 1 patches"),
    ):
        with refused(ValueError, side, "both labels", "stratified_split"):
            make_databunch(sample, small_recipe, valid_idx, num_workers=0)


# room for workers


def test_too_little_shared_memory_is_found_before_training(
    sample, split, small_recipe, refused, monkeypatch
):
    needed = 2 * 2 * (8 * 3 * 90 * 90 * 4 + 8 * 8)  # two workers, two batches each
    for free, enough in ((needed - 1, False), (needed, True)):
        fake = SimpleNamespace(f_bavail=free, f_frsize=1)
        monkeypatch.setattr(os, "statvfs", lambda _, fake=fake: fake)
        if enough:
            make_databunch(sample, small_recipe, split[1], num_workers=2, device="cpu")
            continue
        with refused(ValueError, "num_workers=2", "batch_size=8", f"{needed:,}", "--shm-size"):
            make_databunch(sample, small_recipe, split[1], num_workers=2, device="cpu")
        make_databunch(sample, small_recipe, split[1], num_workers=0, device="cpu")


def test_too_few_open_files_are_found_before_training(refused):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, limits[1]))
    try:
        require_room_for_workers(2, 8, 48)
        with refused(ValueError, "4 workers", f"ulimit -n allows {opened + 60}", "num_workers"):
            require_room_for_workers(4, 8, 48)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files")
def test_a_worker_takes_the_files_that_are_counted(plain):
    items = torch.utils.data.TensorDataset(torch.zeros(400, 3, 48, 48), torch.zeros(400))
    before = len(os.listdir("/proc/self/fd"))
    loader = torch.utils.data.DataLoader(items, batch_size=8, num_workers=2)
    most = max(len(os.listdir("/proc/self/fd")) - before for _ in loader)
    assert 0 < most <= 2 * FILES_A_WORKER + FILES_BESIDE


def test_less_than_no_worker(sample, split, small_recipe, refused):
    with refused(ValueError, "num_workers=-1", "give 0 or more"):
        make_databunch(sample, small_recipe, split[1], num_workers=-1, device="cpu")


# device and generators


def test_a_device_that_computes_nothing(refused):
    for device in ("cpu:999", "meta", "hpu", "mps", "xla", 3.5):
        with refused(ValueError, f"device='{device}'", "cannot be used here", "--device cpu"):
            find_device(device)
    assert find_device("cpu:0").type == "cpu"


@pytest.mark.parametrize("device", [None, "cuda", "cuda:0"])
def test_a_gpu_that_torch_has_no_kernels_for(monkeypatch, refused, device):
    def no_kernel(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available.\nFor debugging pass more.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Tesla P100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (6, 0))
    monkeypatch.setattr(torch, "ones", no_kernel)
    with refused(ValueError, "Tesla P100", "capability 6.0", "no kernel image", "--device cpu"):
        find_device(device)


def test_devices(refused):
    assert find_device("cpu") == torch.device("cpu") and find_device(
        torch.device("cpu")
    ) == torch.device("cpu")
    assert find_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("banana", "cuda:99", 99):
        with refused(ValueError, f"device='{device}'", "cannot be used here"):
            find_device(device)


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.fixture
def settings_kept():
    cudnn = torch.backends.cudnn
    kept = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
        cudnn.deterministic,
        cudnn.benchmark,
    )
    yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.set_rng_state(kept[2])
    cudnn.deterministic, cudnn.benchmark = kept[3:]


def test_set_rng_seed_repeats_all_three_generators_and_none_leaves_them(settings_kept):
    hcd.set_rng_seed(3)
    first, second = draws(), draws()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    hcd.set_rng_seed(4)
    assert all(a != b for a, b in zip(draws(), first))
    hcd.set_rng_seed(3)
    assert draws() == first
    hcd.set_rng_seed(None)
    assert draws() == second
