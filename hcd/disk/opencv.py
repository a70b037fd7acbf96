"""OpenCV, of a version that turns images as in 2019, and without lines of its own."""

import os
import re
from functools import cache

import cv2


@cache
def silence_opencv() -> None:
    """Keep OpenCV from printing lines of its own about damaged images, such as "[ERROR:0@5.8]
    global loadsave.cpp:1409 imdecode_ ...", where the user has not asked for them.

    4.5.5, 4.10 and 4.14 all do; 4.10 has the switch in another place than 4.14.
    """
    if "OPENCV_LOG_LEVEL" in os.environ:
        return
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def require_opencv(version: str) -> None:
    """Require an OpenCV that turns as the one of 2019 did; 5 changed warpAffine.

    An opencv-python-headless beside opencv-python replaces it in silence, by version 5 if it may.

    Raises:
        ImportError: another version.
    """
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
    if not [4, 10] <= numbers < [5]:
        raise ImportError(
            f"OpenCV {version} is installed and hcd needs 4.10 or later but not 5, which turns"
            " images otherwise; run `pip uninstall -y opencv-python opencv-python-headless"
            " opencv-contrib-python` and then `pip install 'opencv-python>=4.10,<5'`"
        )


require_opencv(cv2.__version__)
