"""Small painted slides."""

import numpy as np
import pytest
from slide import painted
from slide.helpers import PLACES, SIZE, Darkness


@pytest.fixture
def darkness():
    """A fresh Darkness."""
    return Darkness()


@pytest.fixture(scope="session")
def section():
    """A painted section of 768 x 576 px, with one tumour, ink and a black edge."""
    return painted.paint(768, 576, PLACES)


@pytest.fixture(scope="session")
def slide_file(section, tmp_path_factory):
    """Function (**options of `painted.save`) -> path of the section as a slide; read it only."""
    folder, made = tmp_path_factory.mktemp("slides"), {}

    def save(**options):
        name = "-".join(f"{name}={value}" for name, value in sorted(options.items())) or "plain"
        if name not in made:
            own = dict(options)
            if own.get("alpha"):
                own["alpha"] = np.where(section.tissue, 255, 0).astype(np.uint8)
            path = folder / f"{name}{'.ome' if own.get('ome') else ''}.tif"
            made[name] = painted.save(path, section, **{"size": SIZE, "levels": 4, **own})
        return made[name]

    return save
