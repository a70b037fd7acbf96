"""The notebook's own process: how it is started, and what it tells the command that started it."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import Diverged, InputError
from . import events
from .events import RUN

# a process of the kernel must import nothing from the folder that the user happens to be in, which
# `python -m` would put first
LAUNCH = (
    "import sys; sys.path[:] = [place for place in sys.path if place]; "
    "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
)
SETTINGS = [
    "--log-level=CRITICAL",
    "--InteractiveShellApp.ignore_cwd=True",
    "--InteractiveShellApp.exec_PYTHONSTARTUP=False",
    "--InteractiveShellApp.extra_extensions=hcd.runs.kernel",
    "--InlineBackend.figure_formats=png",
]
# what the user has set stays. Threads that spin while they wait take the cores from those that
# work: on two cores beside other jobs a run took ten times as long.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}


def own_kernel() -> type:
    """Return the class of kernel managers that start this very Python, whatever kernels the user
    has installed."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class OwnSpecs(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            argv = [sys.executable, "-c", LAUNCH, "-f", "{connection_file}", *SETTINGS]
            return KernelSpec(argv=argv, display_name="hcd", language="python")

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **options):
            super().__init__(**{**options, "kernel_spec_manager": OwnSpecs()})

    return OwnKernel


@contextmanager
def own_environment(folder) -> Iterator[None]:
    """Set what processes that are started now find: the run that they belong to, and an empty
    folder in the place of the user's IPython profiles."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="hcd-ipython-") as empty:
        # neither kernels nor templates of the user's Jupyter
        os.environ.pop("JUPYTER_PATH", None)
        # an empty place, of a colon too many, is the current folder
        places = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
        places = [place for place in places if place not in ("", ".")]
        if places:
            os.environ["PYTHONPATH"] = os.pathsep.join(places)
        os.environ.update(
            {
                "JUPYTER_PREFER_ENV_PATH": "1",
                RUN: str(Path(folder).resolve()),
                "IPYTHONDIR": empty,
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                **{name: before.get(name, value) for name, value in QUIET.items()},
            }
        )
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def load_ipython_extension(shell) -> None:
    """Have the notebook's process append its warnings and its failure to the run's events."""
    import matplotlib

    matplotlib.rcdefaults()  # a matplotlibrc of the user's, or in the current folder, is not ours
    folder = os.environ[RUN]
    events.append(folder, "attempt", process=os.getpid())
    show = warnings.showwarning

    def note(message, category, filename, lineno, *rest):
        text = f"{filename}:{lineno}: {category.__name__}: {message}"
        events.append(folder, "warning", text=text)
        show(message, category, filename, lineno, *rest)

    def tell(result):
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            mendable = isinstance(error, (InputError, OSError))
            final = isinstance(error, Diverged)
            events.append(folder, "failed", mendable=mendable, final=final, text=str(error))

    warnings.showwarning = note
    shell.events.register("post_run_cell", tell)
