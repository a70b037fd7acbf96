"""A notebook is left with no bar that nobody moves any more, however a fit ends."""

from types import SimpleNamespace

import fastprogress.fastprogress as bars
import pytest

from hcd import Checkpoints, get_learner, set_rng_seed
from hcd.disk import shown
from hcd.engine.compat import fastai


@pytest.fixture
def screen(monkeypatch):
    """Draw fastai's bars as a notebook does; return what stands in its places, as they stand."""
    places: list = []

    def display(content, display_id=False):
        places.append(content)
        here = len(places) - 1
        return SimpleNamespace(update=lambda content: places.__setitem__(here, content))

    monkeypatch.setattr(bars, "display", display, raising=False)
    monkeypatch.setattr(bars, "HTML", str, raising=False)
    monkeypatch.setattr(fastai.basic_train, "master_bar", bars.NBMasterBar)
    monkeypatch.setattr(fastai.basic_train, "progress_bar", bars.NBProgressBar)
    monkeypatch.setattr(bars.NBMasterBar, "update_graph", lambda *_: None)
    return places


@pytest.fixture
def fresh(databunch, small_recipe, tmp_path):
    set_rng_seed(0)
    return get_learner(databunch, small_recipe, tmp_path)


class Look(fastai.basic_train.LearnerCallback):
    """Notes what stands on the screen as each batch ends."""

    def __init__(self, learn, screen):
        super().__init__(learn)
        self.screen, self.seen = screen, []

    def on_batch_end(self, train, **_):
        self.seen.append((train, "".join(self.screen)))


class Stop(fastai.basic_train.LearnerCallback):
    """Ends a fit in its first batch: with an error, or as EarlyStopping does at the epoch's end."""

    error = None

    def on_batch_end(self, **_):
        if self.error:
            raise self.error

    def on_epoch_end(self, **_):
        return {"stop_training": True}


def test_a_fit_leaves_its_table_alone(fresh, screen):
    fresh.fit_one_cycle(1)
    assert sum("<table" in place for place in screen) == 1
    assert not [place for place in screen if "<progress" in place]


def test_there_is_one_bar_at_a_time_and_it_says_what_it_is_of(fresh, screen):
    look = Look(fresh, screen)
    fresh.fit(2, callbacks=[look])
    assert all(page.count("<progress ") <= 1 for _, page in look.seen)
    # a batch's end comes before its bar moves, so the first of an epoch is not told yet
    shown = [(train, page) for train, page in look.seen if "<progress " in page]
    told = [(train, page.split("<progress ")[1]) for train, page in shown]
    for epoch in (1, 2):
        assert [page for train, page in told if train and f"epoch {epoch} of 2, loss " in page]
        assert [p for train, p in told if not train and f"epoch {epoch} of 2, validating" in p]


@pytest.mark.parametrize("error", [None, KeyError(), KeyboardInterrupt()], ids=repr)
def test_so_does_one_that_is_broken_off(fresh, screen, error):
    stop = Stop(fresh)
    stop.error = error
    if error:
        with pytest.raises(type(error)):
            fresh.fit(3, callbacks=[stop])
    else:
        fresh.fit(3, callbacks=[stop])
    assert sum("<table" in place for place in screen) == 1
    assert not [place for place in screen if "<progress" in place]


@pytest.mark.parametrize("epochs", [1, 2])
def test_so_does_one_that_is_gone_on_with(
    sample, databunch, small_recipe, tmp_path, screen, epochs
):
    """After its first epoch of two, and when it had come to its end."""

    def fit(resume):
        set_rng_seed(0)
        learner = get_learner(databunch, small_recipe, tmp_path)
        kept = Checkpoints(tmp_path / "kept", small_recipe, sample, resume)
        callbacks = [kept.callback(learner, "stage1")]
        if not resume and epochs == 1:
            callbacks.append(Kill(learner))
        learner.fit(2, callbacks=callbacks)

    class Kill(Stop):
        _order = 1000

        def on_epoch_end(self, **_):
            raise KeyboardInterrupt

    if epochs == 1:
        with pytest.raises(KeyboardInterrupt):
            fit(False)
    else:
        fit(False)
    screen.clear()
    fit(True)
    assert not [place for place in screen if "<progress" in place]


def test_a_range_test_has_one_bar_and_leaves_nothing(fresh, screen, capsys):
    fresh.lr_find(num_it=7)  # an epoch has 5 batches
    assert screen == [] and fresh.callbacks == []
    assert "7/7" in capsys.readouterr().err
    assert len(fresh.recorder.losses) == len(fresh.recorder.lrs) <= 7


def test_what_fastai_says_at_the_end_stands_on_a_line_of_its_own(
    fresh, screen, capsys, monkeypatch
):
    monkeypatch.setattr(shown, "in_notebook", lambda: True)
    fresh.lr_find(num_it=2)
    told = capsys.readouterr().out
    assert "range test: 100%" in told and "#" not in told
    assert told.split("\r")[-1].startswith("LR Finder is complete")


def test_a_range_test_that_fails_leaves_no_callback(fresh, screen):
    stop = Stop(fresh)
    stop.error = KeyError()
    fresh.callbacks.append(stop)
    with pytest.raises(KeyError):
        fresh.lr_find(num_it=3)
    assert fresh.callbacks == [stop] and screen == []


def test_the_bar_changes_no_number(databunch, small_recipe, tmp_path):
    """fastai's own range test on the same draws gives the same curve, bit for bit."""
    curves = []
    for find in (
        type(get_learner(databunch, small_recipe, tmp_path)).lr_find,
        fastai.train.lr_find,
    ):
        set_rng_seed(1)
        databunch.passes.count = 0
        learner = get_learner(databunch, small_recipe, tmp_path)
        find(learner, num_it=6, wd=1e-4)
        curves.append([float(loss) for loss in learner.recorder.losses])
    assert curves[0] == curves[1]
